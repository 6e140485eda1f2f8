"""Adapters from engine to engine over real sockets: the bytes arrive, whatever happens to a holder."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from cepo.errors import PolicyError, Unreachable
from cepo.messages.groups import PolicyRef, PolicyRequest
from cepo.messages.wire import from_proto, to_proto
from cepo.net.auth import TokenInterceptor, Tokens
from cepo.net.certificates import Authority
from cepo.net.connections import GRPC_OPTIONS, free_ports, listen
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2, services_pb2_grpc
from cepo.service import adapters, relay
from cepo.service.adapters import CHUNK_BYTES, FILES, digest, fetch_adapter
from cepo.service.relay import AdapterRelay
from services.trainer.fanout import Fanout

CONFIG, WEIGHTS = FILES
FILES_OF_V1 = {CONFIG: b"{}", WEIGHTS: bytes(range(256)) * (5 * CHUNK_BYTES // 512)}
V1 = PolicyRef(version=1, sha256=digest(FILES_OF_V1))
TOKEN = "a-token-of-the-tests"


class Trainer(services_pb2_grpc.TrainerServiceServicer):
    """Serves versions with the same files, and counts the requests and the copies that it sends."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fanout, self.asked, self.copies = folder, Fanout(), 0, 0
        self.going = asyncio.Event()
        """Until it is set, the trainer sends the first two chunks of the weights alone."""
        self.going.set()

    async def FetchPolicy(self, request: Any, context: Any) -> AsyncIterator[services_pb2.PolicyChunk]:
        asked, sent = from_proto(PolicyRequest, request), 0
        self.asked += 1
        async for chunk in self.fanout.stream(asked, context.peer(), self.folder):
            if sent == 3:
                await self.going.wait()
            sent += 1
            yield chunk
        self.copies += not chunk.HasField("holder")


@asynccontextmanager
async def serving(settings: Settings, add: Any) -> AsyncIterator[grpc.aio.Server]:
    server = grpc.aio.server(interceptors=[TokenInterceptor(Tokens.of(settings))], options=GRPC_OPTIONS)
    add(server)
    listen(server, f"127.0.0.1:{settings.grpc_port}", settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


class Cluster:
    """A trainer and engines."""

    def __init__(self, trainer: Trainer, folder: Path, stack: AsyncExitStack, certificates: str) -> None:
        self.trainer, self._folder, self._stack, self.certificates = trainer, folder, stack, certificates
        self.address = ""
        self.servers: list[grpc.aio.Server] = []

    def settings(self) -> Settings:
        (port,) = free_ports(1)
        return Settings(
            trainer_address=self.address,
            grpc_port=port,
            token=TOKEN,
            adapter_cache=self._folder / f"cache-{port}",
            certificates=self.certificates,
        )

    async def start(self) -> None:
        settings = self.settings()
        self.address = f"127.0.0.1:{settings.grpc_port}"
        add = services_pb2_grpc.add_TrainerServiceServicer_to_server
        await self._stack.enter_async_context(serving(settings, lambda server: add(self.trainer, server)))

    async def engine(self, holder: type[AdapterRelay] = AdapterRelay) -> AdapterRelay:
        settings = self.settings()
        engine = holder("rollout", settings)
        self.servers.append(await self._stack.enter_async_context(serving(settings, engine.register)))
        return engine


@asynccontextmanager
async def running(folder: Path, certificates: str = "") -> AsyncIterator[Cluster]:
    adapters.write(folder / "v1", FILES_OF_V1)
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        cluster = Cluster(Trainer(folder / "v1"), folder, stack, certificates)
        await cluster.start()
        yield cluster


async def loaded(engine: AdapterRelay, policy: PolicyRef = V1) -> bool:
    return adapters.read(await engine.cache.folder(policy)) == FILES_OF_V1


async def test_nine_engines_that_ask_at_once_take_two_copies_from_the_trainer(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        engines = [await cluster.engine() for _ in range(9)]
        assert all(await asyncio.gather(*map(loaded, engines)))
        assert cluster.trainer.copies == 2
        late = await cluster.engine()
        assert await loaded(late)
        assert cluster.trainer.copies == 2


async def test_later_versions_spread_without_requests_to_the_trainer_but_those_of_two_engines(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        engines = [await cluster.engine() for _ in range(9)]
        for engine in engines:
            assert await loaded(engine)
        for version in (2, 3):
            cluster.trainer.asked = cluster.trainer.copies = 0
            policy = PolicyRef(version=version, sha256=V1.sha256)
            assert await loaded(engines[-1], policy)  # its holders, which have not heard of the version, fetch it first
            assert all(await asyncio.gather(*(loaded(engine, policy) for engine in engines)))
            assert (cluster.trainer.asked, cluster.trainer.copies) == (2, 2)


async def test_an_engine_asks_again_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "STAY_SECONDS", 0.0)
    async with running(tmp_path) as cluster:
        engines = [await cluster.engine() for _ in range(3)]
        for version in (1, 2):
            for engine in engines:
                assert await loaded(engine, PolicyRef(version=version, sha256=V1.sha256))
        assert (cluster.trainer.asked, cluster.trainer.copies) == (6, 4)


async def test_with_two_engines_every_engine_gets_the_bytes_from_the_trainer(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        engines = [await cluster.engine() for _ in range(2)]
        assert all(await asyncio.gather(*map(loaded, engines)))
        assert cluster.trainer.copies == 2
        plain = await fetch_adapter(cluster.settings(), V1)  # a client of an earlier version
        assert plain == FILES_OF_V1
        assert cluster.trainer.copies == 3


async def test_an_engine_sends_on_what_it_is_still_receiving(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        cluster.trainer.going.clear()
        engines = [await cluster.engine() for _ in range(3)]
        loading = [asyncio.create_task(loaded(engine)) for engine in engines]
        while V1.name not in engines[2]._arriving or len(engines[2]._arriving[V1.name]._chunks) < 3:
            await asyncio.sleep(0.01)
        assert not any(task.done() for task in loading)
        cluster.trainer.going.set()
        assert all(await asyncio.gather(*loading))
        assert cluster.trainer.copies == 2


async def test_a_holder_that_dies_is_replaced_by_the_trainer_and_its_follower_keeps_its_own(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        cluster.trainer.going.clear()
        engines = [await cluster.engine() for _ in range(7)]
        loading = []
        for engine in engines:  # the seventh follows the fifth, the third and the first
            loading.append(asyncio.create_task(loaded(engine)))
            while V1.name not in engine._arriving or len(engine._arriving[V1.name]._chunks) < 3:
                await asyncio.sleep(0.01)
        await cluster.servers[0].stop(0)
        await asyncio.sleep(0.1)
        cluster.trainer.going.set()
        assert all(await asyncio.gather(*loading))
        assert cluster.trainer.copies == 3  # the third asked again, and those behind it did not notice


async def test_a_holder_that_waits_is_not_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(relay, "SILENCE_SECONDS", 0.5)
    async with running(tmp_path) as cluster:
        cluster.trainer.going.clear()
        engines = [await cluster.engine() for _ in range(3)]
        loading = [asyncio.create_task(loaded(engine)) for engine in engines]
        await asyncio.sleep(1.2)
        cluster.trainer.going.set()
        assert all(await asyncio.gather(*loading))
        assert cluster.trainer.copies == 2


class Silent(AdapterRelay):
    async def FetchPolicy(self, request: Any, context: Any) -> AsyncIterator[services_pb2.PolicyChunk]:
        await asyncio.sleep(3600)
        yield services_pb2.PolicyChunk()


class Absent(AdapterRelay):
    async def FetchPolicy(self, request: Any, context: Any) -> AsyncIterator[services_pb2.PolicyChunk]:
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        yield services_pb2.PolicyChunk()


class Wrong(AdapterRelay):
    async def FetchPolicy(self, request: Any, context: Any) -> AsyncIterator[services_pb2.PolicyChunk]:
        yield services_pb2.PolicyChunk(file=CONFIG, data=b"{}")
        yield services_pb2.PolicyChunk(file=WEIGHTS, data=b"other weights")


class Foreign(AdapterRelay):
    async def FetchPolicy(self, request: Any, context: Any) -> AsyncIterator[services_pb2.PolicyChunk]:
        yield services_pb2.PolicyChunk(file="../../evil", data=b"x")


@pytest.mark.parametrize("kind", [Silent, Absent, Wrong, Foreign])
async def test_a_holder_that_does_not_send_the_adapter_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[AdapterRelay]
) -> None:
    monkeypatch.setattr(relay, "SILENCE_SECONDS", 0.3)
    async with running(tmp_path) as cluster:
        for _ in range(2):
            assert await loaded(await cluster.engine(kind))
        followers = [await cluster.engine() for _ in range(4)]
        assert all([await loaded(engine) for engine in followers])
        assert cluster.trainer.copies == 4  # two followers of the two holders; the others follow them


async def test_followers_of_an_engine_that_fails_get_the_bytes_from_the_trainer(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        cluster.trainer.going.clear()
        engines = [await cluster.engine() for _ in range(3)]
        first = asyncio.create_task(loaded(engines[0]))
        while V1.name not in engines[0]._arriving:
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(loaded(engine)) for engine in engines[1:]]
        while V1.name not in engines[2]._arriving or len(engines[2]._arriving[V1.name]._chunks) < 3:
            await asyncio.sleep(0.01)
        first.cancel()
        cluster.trainer.going.set()
        assert all(await asyncio.gather(*others))
        with pytest.raises(Unreachable, match=r"v000001-\w+ did not arrive here"):
            async for _ in _unfinished().read_along(0.1):
                pass


def _unfinished() -> adapters.Arriving:
    arriving = adapters.Arriving(V1)
    arriving.end(whole=False)
    return arriving


async def test_holders_need_the_token(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        engine = await cluster.engine()
        assert await loaded(engine)
        address = f"127.0.0.1:{engine._settings.grpc_port}"
        async with grpc.aio.insecure_channel(address) as channel:
            stub = services_pb2_grpc.HolderServiceStub(channel)
            chunk = await stub.FetchPolicy(to_proto(V1), metadata=Tokens(TOKEN).metadata()).read()
            assert chunk.file == CONFIG
            with pytest.raises(grpc.aio.AioRpcError, match="wrong or missing token"):
                await stub.FetchPolicy(to_proto(V1)).read()


async def test_with_tls_a_holder_proves_the_name_of_its_service_and_not_its_address(tmp_path: Path) -> None:
    """Engines know one another by the addresses of their connections, which no certificate names."""
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    authority = Authority.new("ours", now - day, now + day)
    authority.issue(tmp_path / "trainer", "trainer", ["127.0.0.1"], now - day, now + day)
    authority.issue(tmp_path / "rollout", "rollout", ["rollout"], now - day, now + day)
    async with running(tmp_path, str(tmp_path / "trainer")) as cluster:
        cluster.certificates = str(tmp_path / "rollout")
        engines = [await cluster.engine() for _ in range(4)]
        assert all(await asyncio.gather(*map(loaded, engines)))
        assert cluster.trainer.copies == 2


async def test_an_adapter_that_the_trainer_does_not_have_is_an_error_as_before(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        engine = await cluster.engine()
        (tmp_path / "v1" / CONFIG).unlink()
        with pytest.raises((PolicyError, Unreachable)):
            await engine.cache.folder(V1)
        assert engine._arriving == {}
