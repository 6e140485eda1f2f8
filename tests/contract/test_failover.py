"""A failover between two servers: the replica is promoted, and lacks writes that the primary had acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from cepo.messages.groups import EvidencedGroup, PromptTask, RolloutGroup, ScoredGroup, Stage
from cepo.service.bus import RedisBus, ready
from cepo.service.stage import StageLoop
from services.trainer.collector import Collector
from tests.helpers.factories import make_group, make_scored, make_task
from tests.helpers.processes import RedisServer

TASKS = [make_task(index=i, asks=(), route=(Stage.ROLLOUT, Stage.VERIFY)) for i in range(40)]
CLAIM_SECONDS = 0.5


class Address:
    """An address that leads to one of several servers, as a Kubernetes service or a managed endpoint does."""

    def __init__(self, port: int) -> None:
        self.port = port
        """The port that new connections reach."""
        self.url = ""
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        try:
            yield
        finally:
            server.close()
            self.drop()

    def drop(self) -> None:
        """Closes all connections, as the death of a server does."""
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers |= {writer, inner_writer}
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(_pass(reader, inner_writer), _pass(inner_reader, writer))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[RedisServer, RedisServer, Address]]:
    """A primary, its replica in step with it, and the address that leads to the primary."""
    for name in ("primary", "replica"):
        (tmp_path / name).mkdir()
    with RedisServer(tmp_path / "primary") as primary, RedisServer(tmp_path / "replica") as replica:
        for server in (primary, replica):
            with Redis.from_url(server.url) as client:
                client.config_set("repl-diskless-sync-delay", 0)
        follow(replica, primary)
        address = Address(primary.port)
        async with address.serving():
            yield primary, replica, address


def follow(replica: RedisServer, primary: RedisServer | None) -> None:
    """Makes a server the replica of another one, or a primary."""
    with Redis.from_url(replica.url) as client:
        client.replicaof("127.0.0.1", str(primary.port)) if primary else client.replicaof("NO", "ONE")
        while primary and client.info("replication")["master_link_status"] != "up":
            pass


@contextlib.asynccontextmanager
async def working(url: str) -> AsyncIterator[None]:
    """Two workers of each stage."""
    handlers: dict[Stage, Callable[[Any], RolloutGroup | ScoredGroup]] = {
        Stage.ROLLOUT: lambda task: make_group(task=task),
        Stage.VERIFY: lambda group: make_scored(task=group.task),
    }

    async def handle(make: Callable[[Any], RolloutGroup | ScoredGroup], message: Any) -> RolloutGroup | ScoredGroup:
        await asyncio.sleep(0.01)
        return make(message)

    stop, buses = asyncio.Event(), [RedisBus(url, CLAIM_SECONDS) for _ in range(4)]
    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        for number, bus in enumerate(buses):
            stage = list(handlers)[number % 2]
            loop = StageLoop(bus, stage, partial(handle, handlers[stage]), 4, CLAIM_SECONDS, consumer=f"w{number}")
            group.create_task(loop.run(stop))
        try:
            yield
        finally:
            stop.set()
    for bus in buses:
        await bus.close()


async def collect(url: str, before: Callable[[RedisBus], Any]) -> list[PromptTask]:
    """Publishes half of the tasks, then runs `before`, which publishes the others; returns the tasks of all groups."""
    bus = RedisBus(url, CLAIM_SECONDS)
    collector = Collector(bus, "run", lambda proof: None, partial(bus.publish, "rollout"))
    async with bus.lease("run", "trainer"), working(url):
        collector.expect(TASKS)
        await bus.publish("rollout", TASKS[:20])
        await before(bus)
        groups = await collector.take(TASKS)
        assert all(isinstance(group, EvidencedGroup) for group in groups)
        await bus.publish(ready("run"), [make_scored(task=TASKS[0])])  # a duplicate, as a failover may bring back
    await bus.close()
    return [group.task for group in groups]


async def test_acknowledged_writes_that_a_failover_loses_lose_no_group(
    pair: tuple[RedisServer, RedisServer, Address],
) -> None:
    primary, replica, address = pair

    async def fail_over(bus: RedisBus) -> None:
        await asyncio.sleep(0.05)
        await asyncio.to_thread(follow, replica, None)  # from here on the primary's writes are on no replica
        await bus.publish("rollout", TASKS[20:])
        assert await bus.depth("rollout") > 0
        await asyncio.to_thread(primary.kill)
        address.port = replica.port
        address.drop()

    assert await collect(address.url, fail_over) == TASKS
    with Redis.from_url(replica.url) as client:
        assert client.hget("{cepo}:lease:run", "beat") == b"0"  # the lease is on the new primary, and released


async def test_a_demoted_primary_is_left_for_the_new_one(pair: tuple[RedisServer, RedisServer, Address]) -> None:
    primary, replica, address = pair

    async def switch(bus: RedisBus) -> None:
        await asyncio.to_thread(follow, replica, None)
        address.port = replica.port
        await asyncio.to_thread(follow, primary, replica)  # it stays up, with its connections, and refuses writes
        await bus.publish("rollout", TASKS[20:])

    assert await collect(address.url, switch) == TASKS
