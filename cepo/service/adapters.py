"""LoRA adapters by content: written atomically, named by digest, fetched once, kept bounded.

An adapter is a folder in PEFT's format. Its digest covers the names and bytes of its files, so whoever holds the
bytes can prove which policy they are.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import grpc

from cepo.errors import PolicyError, Unreachable
from cepo.messages.groups import BASE_POLICY, PolicyProof, PolicyRef
from cepo.messages.wire import to_proto
from cepo.net.auth import Tokens
from cepo.net.connections import channel
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2, services_pb2_grpc
from cepo.service.bus import Bus

FILES = ("adapter_config.json", "adapter_model.safetensors")
CHUNK_BYTES = 2**20
MAX_ADAPTER_BYTES = 16 * 2**30
"""Rank 512 on every module of a 70 B model is under it; what arrives is held in memory."""
FETCH_SECONDS = 180.0
"""How long a trainer that restarts is waited for."""

log = logging.getLogger(__name__)

Fetch = Callable[[PolicyRef], Awaitable[dict[str, bytes]]]


def digest(files: Mapping[str, bytes]) -> str:
    """sha256 over the names, lengths and bytes of an adapter's files."""
    whole = hashlib.sha256()
    for name in FILES:
        whole.update(f"{name}:{len(files[name])}:".encode())
        whole.update(files[name])
    return whole.hexdigest()


def read(folder: Path) -> dict[str, bytes]:
    """The files of an adapter folder."""
    return {name: (folder / name).read_bytes() for name in FILES}


def chunks(folder: Path) -> Iterator[services_pb2.PolicyChunk]:
    """The files of an adapter folder in pieces, as TrainerService.FetchPolicy sends them."""
    for name, data in read(folder).items():
        for at in range(0, len(data), CHUNK_BYTES):
            yield services_pb2.PolicyChunk(file=name, data=data[at : at + CHUNK_BYTES])


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes an adapter so that its folder appears whole or not at all: temporary folder, fsync, rename."""
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for name in FILES:
        with (scratch / name).open("wb") as file:
            file.write(files[name])
            file.flush()
            os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


async def fetch_from_trainer(settings: Settings, policy: PolicyRef) -> dict[str, bytes]:
    """Streams an adapter from TrainerService.FetchPolicy.

    Raises:
        Unreachable: the trainer does not answer in time.
        PolicyError: the trainer does not have this policy, or sends what is no adapter.
    """
    address, metadata = settings.trainer_address, Tokens.of(settings).metadata()
    files: dict[str, bytearray] = {}
    async with channel(address, settings) as trainer:
        stub = services_pb2_grpc.TrainerServiceStub(trainer)
        try:
            call = stub.FetchPolicy(to_proto(policy), metadata=metadata, timeout=FETCH_SECONDS, wait_for_ready=True)
            async for chunk in call:
                _check_size(policy, chunk.file, sum(map(len, files.values())) + len(chunk.data))
                files.setdefault(chunk.file, bytearray()).extend(chunk.data)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
                raise PolicyError(f"the trainer at {address} does not have {policy.name}: {error.details()}") from error
            raise Unreachable(f"trainer at {address}: {error.code().name}: {error.details()}") from error
    return {name: bytes(data) for name, data in files.items()}


def _check_size(policy: PolicyRef, file: str, size: int) -> None:
    if file not in FILES or size > MAX_ADAPTER_BYTES:
        raise PolicyError(f"the trainer sends {file!r} for {policy.name}, {size} bytes so far: this is no adapter")


class AdapterCache:
    """Adapter folders on a fast disk: fetched once, checked against their digest, the least recently used dropped."""

    def __init__(self, root: Path, fetch: Fetch, keep: int) -> None:
        self._root = root
        self._fetch = fetch
        self._keep = keep
        self._order: dict[str, None] = {}
        self._fetching: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def folder(self, policy: PolicyRef) -> Path:
        """The folder of an adapter; fetched if it is not here.

        Raises:
            PolicyError: the bytes are not those the reference names; nothing is kept.
        """
        folder = self._root / policy.name
        async with self._fetching.setdefault(policy.name, asyncio.Lock()):  # who waits for one holds up no other
            if policy.name not in self._order:
                files = await self._fetch(policy)
                if set(files) != set(FILES) or digest(files) != policy.sha256:
                    raise PolicyError(
                        f"adapter {policy.name} does not match its sha256: damaged on the way, or another policy"
                    )
                write(folder, files)
            self._order.pop(policy.name, None)
            self._order[policy.name] = None
            for name in list(self._order)[: -self._keep]:
                del self._order[name]
                shutil.rmtree(self._root / name, ignore_errors=True)
        return folder

    def clear(self) -> None:
        """Removes every folder."""
        self._order.clear()
        shutil.rmtree(self._root, ignore_errors=True)


class Engine(Protocol):
    """What holds policies: the rollout's sampler, the teacher's scorer."""

    async def load(self, policy: PolicyRef) -> PolicyProof:
        """Makes a policy resident and says what was bound; repeated calls are cheap."""
        ...

    def close(self) -> None: ...


def trainer_cache(service: str, settings: Settings) -> AdapterCache:
    """A process's own cache, filled from the trainer."""

    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        return await fetch_from_trainer(settings, policy)

    root = settings.adapter_cache / f"{service}-{os.getpid()}"
    return AdapterCache(root, fetch, keep=settings.max_loras + 2)


@asynccontextmanager
async def resident(
    engine: Engine, bus: Bus, adapters: AdapterCache, *watches: Callable[[], Coroutine[Any, Any, None]]
) -> AsyncIterator[None]:
    """An engine with the base loaded, that loads policies as they are announced, ahead of the first task.

    Args:
        watches: run beside the work; what one of them raises ends it.
    """
    try:
        await engine.load(BASE_POLICY)
        prefetching = asyncio.create_task(_prefetch(engine, bus))
        try:
            async with asyncio.TaskGroup() as group:
                watching = [group.create_task(watch()) for watch in watches]
                yield
                for task in watching:
                    task.cancel()
        finally:
            prefetching.cancel()
    finally:
        engine.close()
        adapters.clear()


async def _prefetch(engine: Engine, bus: Bus) -> None:
    async for policy in bus.announcements():
        try:
            await engine.load(policy)
        except (PolicyError, Unreachable) as error:
            log.warning("announced %s is not loaded yet: %s", policy.name, error)  # its first task tries again
