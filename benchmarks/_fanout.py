"""A trainer and engines that fetch an adapter over real sockets, and the same computed for measured rates."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from cepo.messages.groups import PolicyRef, PolicyRequest
from cepo.messages.wire import from_proto
from cepo.net.connections import GRPC_OPTIONS, free_ports
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2, services_pb2_grpc
from cepo.service import adapters
from cepo.service.adapters import CHUNK_BYTES, FILES, digest
from cepo.service.relay import AdapterRelay
from services.trainer.fanout import FOLLOWERS, Fanout, Peer

VERSION = 1
_SPAWN = multiprocessing.get_context("spawn")


def adapter(size: int) -> dict[str, bytes]:
    """The files of an adapter of a size."""
    return {FILES[0]: b"{}", FILES[1]: bytes(size)}


class Trainer(services_pb2_grpc.TrainerServiceServicer):
    """Serves one adapter as the trainer does, and counts what it sends."""

    def __init__(self, folder: Path, fanout: Fanout) -> None:
        self._folder, self._fanout = folder, fanout
        self.copies, self.sent_bytes = 0, 0

    async def FetchPolicy(self, request: Any, context: Any) -> AsyncIterator[services_pb2.PolicyChunk]:
        """The trainer's method."""
        asked = from_proto(PolicyRequest, request)
        async for chunk in self._fanout.stream(asked, context.peer(), self._folder):
            self.sent_bytes += len(chunk.data)
            yield chunk
        self.copies += not chunk.HasField("holder")


@contextlib.asynccontextmanager
async def serving(add: Any, port: int = 0) -> AsyncIterator[str]:
    """Runs a gRPC server on loopback; yields its address."""
    server = grpc.aio.server(options=GRPC_OPTIONS)
    add(server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@dataclass(frozen=True)
class Crowd:
    """Engines in one process."""

    trainer: str
    sha256: str
    ports: Sequence[int]
    versions: int
    folder: Path
    tree: bool
    """Whether they send on what they receive; otherwise the trainer sends every copy."""

    def run(self, go: Any, done: Any) -> None:
        """Starts the engines; lets each fetch every version at once with all others, and reports when each had it."""
        asyncio.run(self._run(go, done))

    async def _run(self, go: Any, done: Any) -> None:
        async with contextlib.AsyncExitStack() as stack:
            engines = []
            for port in self.ports:
                settings = Settings(trainer_address=self.trainer, grpc_port=port, adapter_cache=self.folder / str(port))
                relay = AdapterRelay("rollout", settings if self.tree else settings.model_copy(update={"grpc_port": 0}))
                if self.tree:
                    await stack.enter_async_context(serving(relay.register, port))
                engines.append(relay)
            for version in range(VERSION, VERSION + self.versions):
                policy = PolicyRef(version=version, sha256=self.sha256)
                await asyncio.to_thread(go.wait)
                begun = time.monotonic()

                async def fetched(relay: AdapterRelay, policy: PolicyRef = policy, begun: float = begun) -> float:
                    await relay.cache.folder(policy)
                    return time.monotonic() - begun

                done.put(await asyncio.gather(*map(fetched, engines)))
            await asyncio.to_thread(go.wait)  # an engine serves until all have the last version
        for relay in engines:
            relay.cache.clear()


@dataclass(frozen=True)
class Spread:
    """How one version reached engines."""

    copies: int
    """Copies that the trainer sent."""
    sent_bytes: int
    """Bytes that the trainer sent."""
    seconds: list[float]
    """When each engine had it, in order."""


async def spread(
    engines: int, processes: int, size: int, *, tree: bool, versions: int, fanout: Fanout | None = None
) -> list[Spread]:
    """Lets engines fetch versions of an adapter, each at once, from a trainer in this process."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder, files = Path(name), adapter(size)
        adapters.write(folder / "adapter", files)
        trainer = Trainer(folder / "adapter", fanout or Fanout(near_followers=FOLLOWERS))  # as on other machines
        add = services_pb2_grpc.add_TrainerServiceServicer_to_server
        async with serving(lambda server: add(trainer, server)) as address:
            go, done = _SPAWN.Barrier(processes + 1), _SPAWN.Queue()
            ports = free_ports(engines)
            crowds = [
                Crowd(address, digest(files), ports[i::processes], versions, folder, tree) for i in range(processes)
            ]
            started = [_SPAWN.Process(target=crowd.run, args=(go, done), daemon=True) for crowd in crowds]
            for process in started:
                process.start()
            result = []
            for _ in range(versions):
                trainer.copies = trainer.sent_bytes = 0
                await asyncio.to_thread(go.wait)
                seconds = [each for _ in crowds for each in await asyncio.to_thread(done.get)]
                result.append(Spread(trainer.copies, trainer.sent_bytes, sorted(seconds)))
            await asyncio.to_thread(go.wait)
            for process in started:
                await asyncio.to_thread(process.join)
        return result


@dataclass(frozen=True)
class Rates:
    """What the simulation is computed with."""

    bytes_per_second: float
    """What one process sends, to all of its followers together."""
    ask_seconds: float
    """The trainer's time for a request that it answers with a holder; it answers one after another."""
    hop_seconds: float
    """From the arrival of a chunk at a holder until it is on its way to a follower."""


def simulated(engines: Sequence[Peer], size: int, rates: Rates, *, tree: bool) -> Spread:
    """When each engine would have an adapter if all ask at once.

    A sender sends each chunk to its followers in turn, at its whole rate. Chunks arrive in order, so the times of an
    engine follow from those of its holder:

        received[k, f] = max(end of the sender's previous chunk, arrival[k] + hop, when f had asked) + chunk / rate
    """
    fanout, chunk, parts = Fanout(), CHUNK_BYTES / rates.bytes_per_second, -(-size // CHUNK_BYTES)
    followers: dict[Peer | None, list[tuple[Peer, float]]] = {None: []}
    for number, engine in enumerate(engines, 1):
        holder = fanout.holder(engine) if tree else None
        followers[holder].append((engine, number * rates.ask_seconds))
        followers[engine] = []
    copies, seconds = len(followers[None]), []
    arrivals: dict[Peer | None, list[float]] = {None: [0.0] * parts}
    for sender in (None, *engines):  # a holder asked before its followers did
        free, arrived = 0.0, arrivals.pop(sender)
        for engine, _ in followers[sender]:
            arrivals[engine] = []
        for at in arrived:
            for engine, asked in followers[sender]:
                free = max(free, at + rates.hop_seconds, asked) + chunk
                arrivals[engine].append(free)
        if sender is not None:
            seconds.append(arrived[-1])
    return Spread(copies, copies * size, sorted(seconds))
