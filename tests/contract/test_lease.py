"""The lease of a run: one trainer at a time, also when Redis repeats, loses or delays what a trainer wrote."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cepo.errors import UserError
from cepo.service.bus import RedisBus, ready
from cepo.service.lease import LEASE_SECONDS, Lease
from cepo.service.scripts import ACQUIRE, RENEW
from cepo.testing import MemoryBus
from tests.contract.test_bus_faults import until
from tests.helpers.factories import make_group, make_task
from tests.helpers.processes import RedisServer


@pytest.fixture
async def bus(redis_server: RedisServer) -> AsyncIterator[RedisBus]:
    made = RedisBus(redis_server.url)
    yield made
    await made.close()


@pytest.fixture
async def trainers(redis_server: RedisServer) -> AsyncIterator[tuple[RedisBus, RedisBus]]:
    """The connections of two trainers, with a short lease."""
    made = RedisBus(redis_server.url, lease_seconds=0.3), RedisBus(redis_server.url, lease_seconds=0.3)
    yield made
    for bus in made:
        await bus.close()


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_a_second_trainer_is_refused_with_the_address_of_the_first(
    kind: str, trainers: tuple[RedisBus, RedisBus]
) -> None:
    memory = MemoryBus()
    first, second = (memory, memory) if kind == "memory" else trainers
    async with first.lease("run", "here:8051"):
        with pytest.raises(UserError, match="run run: the trainer at here:8051 works on it"):
            await second.lease("run", "there:8051").__aenter__()
        async with second.lease("another run", "there:8051"):
            pass
    async with second.lease("run", "there:8051"):
        pass


async def test_a_trainer_that_lost_its_lease_publishes_nothing_and_takes_nothing(
    trainers: tuple[RedisBus, RedisBus], redis_server: RedisServer
) -> None:
    stalled, observer = trainers
    taken = threading.Event()

    async def succeed() -> None:
        successor = RedisBus(redis_server.url, lease_seconds=0.3)
        async with successor.lease("run", "successor:8051"):
            await successor.publish("rollout", [make_task()])
            taken.set()
            await asyncio.sleep(1.0)
        await successor.close()

    async def work() -> None:
        async with stalled.lease("run", "stalled:8051"):
            await stalled.publish("ready:run", [make_group()])
            (item,) = await stalled.receive("ready:run", "stalled", 1, 1.0)
            thread = threading.Thread(target=lambda: asyncio.run(succeed()))
            thread.start()
            assert taken.wait(60)  # stalls this trainer's event loop until its lease has run out
            with pytest.raises(UserError, match="the trainer at successor:8051 has taken the run over"):
                await stalled.complete(item, "ready:run", None)
            try:
                await stalled.publish("rollout", [make_task(index=1)])
            finally:
                await asyncio.to_thread(thread.join)

    with pytest.raises(BaseExceptionGroup) as lost:
        await work()
    assert lost.group_contains(UserError, match="taken the run over")
    assert (await observer.depth("rollout"), await observer.depth("ready:run")) == (1, 1)


async def test_a_trainer_ends_when_it_notices_its_successor(trainers: tuple[RedisBus, RedisBus]) -> None:
    first, other = trainers

    async def work() -> None:
        async with asyncio.timeout(60), first.lease("run", "first"):
            await other._redis.hset("{cepo}:lease:run", mapping={"token": 99, "holder": "second"})
            await asyncio.sleep(3600)

    with pytest.raises(BaseExceptionGroup) as lost:
        await work()
    assert lost.group_contains(UserError, match="the trainer at second has taken the run over")


async def test_a_trainer_that_lost_its_lease_ends_although_its_cancellation_was_swallowed(
    trainers: tuple[RedisBus, RedisBus],
) -> None:
    """The Redis client swallows one cancellation in twenty, and a trainer that receives nothing publishes nothing."""
    first, other = trainers

    async def work() -> None:
        async with asyncio.timeout(60), first.lease("run", "first"):
            await other._redis.hset("{cepo}:lease:run", mapping={"token": 99, "holder": "second"})
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            await first.receive(ready("run"), "first", 1, 0.01)
            await asyncio.sleep(60)

    with pytest.raises(BaseExceptionGroup) as ended:
        await work()
    errors = ended.value.exceptions
    assert [type(error) for error in errors] == [UserError, UserError]
    assert all("the trainer at second has taken the run over" in str(error) for error in errors)


async def test_a_lease_ends_although_the_cancellation_of_its_renewal_was_swallowed() -> None:
    renewing = asyncio.Event()

    async def call(source: str, key: str, args: list[Any]) -> Any:
        if source == RENEW and args[3]:  # a renewal, and not the release
            renewing.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        return [1] if source == ACQUIRE else b""

    async with asyncio.timeout(10) as limit, Lease(call, "run", "first", 0.03).held():
        await renewing.wait()
    assert not limit.expired()


async def test_a_trainer_keeps_a_run_whose_lease_redis_has_forgotten(trainers: tuple[RedisBus, RedisBus]) -> None:
    first, other = trainers
    async with first.lease("run", "first"):
        await other._redis.flushall()
        await first.publish("rollout", [make_task()])
        await until(lambda: other._redis.exists("{cepo}:lease:run"))
        assert await other._redis.hget("{cepo}:lease:run", "token") == b"1"


DIES = """
import asyncio, os, sys
from cepo.service.bus import RedisBus

async def main():
    async with RedisBus(sys.argv[1]).lease("run", "killed"):
        os.kill(os.getpid(), 9)

asyncio.run(main())
"""


async def test_a_killed_trainer_is_replaced_at_once_on_its_machine(bus: RedisBus, redis_server: RedisServer) -> None:
    killed = subprocess.run([sys.executable, "-c", DIES, redis_server.url], check=False)
    assert killed.returncode == -9
    assert await bus._redis.hget("{cepo}:lease:run", "holder") == b"killed"
    begun = time.monotonic()
    async with bus.lease("run", "successor"):
        assert time.monotonic() - begun < LEASE_SECONDS / 2


@pytest.mark.parametrize("predecessor", [True, False])
async def test_a_trainer_whose_acquisition_was_executed_although_its_reply_was_lost_holds_the_run(
    bus: RedisBus, redis_server: RedisServer, predecessor: bool
) -> None:
    """The client repeats a call whose connection was dropped, and then finds the run taken by itself."""
    if predecessor:
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", DIES, redis_server.url], check=False)

    async def twice(source: str, key: str, args: list[Any]) -> Any:
        await bus._redis.eval(source, 1, key, *args)
        return await bus._redis.eval(source, 1, key, *args)

    begun = time.monotonic()
    async with Lease(twice, "run", "first", LEASE_SECONDS).held():
        assert time.monotonic() - begun < LEASE_SECONDS / 2
        assert await bus._redis.hget("{cepo}:lease:run", "holder") == b"first"


async def test_a_trainer_does_not_wait_for_one_that_took_the_run_and_was_killed_meanwhile(
    bus: RedisBus, redis_server: RedisServer
) -> None:
    """A Redis that stalled executes the call of a killed trainer between two calls of its successor."""
    dying = [sys.executable, "-c", DIES, redis_server.url]
    await asyncio.to_thread(subprocess.run, dying, check=False)
    calls = 0

    async def call(source: str, key: str, args: list[Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            await asyncio.to_thread(subprocess.run, dying, check=False)
        return await bus._redis.eval(source, 1, key, *args)

    async with asyncio.timeout(60), Lease(call, "run", "successor", LEASE_SECONDS).held():
        assert await bus._redis.hget("{cepo}:lease:run", "token") == b"3"


async def test_a_trainer_whose_acquisition_redis_has_lost_is_fenced_by_a_successor_with_the_same_token(
    trainers: tuple[RedisBus, RedisBus], redis_server: RedisServer
) -> None:
    """An append-only file that was cut, or a replica that was promoted, holds the lease of a trainer that has ended."""
    first, observer = trainers
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", DIES, redis_server.url], check=False)
    before = await observer._redis.hgetall("{cepo}:lease:run")

    async def call(source: str, key: str, args: list[Any]) -> Any:
        return await observer._redis.eval(source, 1, key, *args)

    async def work() -> None:
        async with asyncio.timeout(60), first.lease("run", "first"):
            successor = Lease(call, "run", "successor", LEASE_SECONDS)
            successor.process += "-of-the-successor"
            await observer._redis.hset("{cepo}:lease:run", mapping=before)
            await successor._acquire()
            assert first._lease is not None
            assert successor.token == first._lease.token == 2
            with pytest.raises(UserError, match="the trainer at successor has taken the run over"):
                await first.publish("rollout", [make_task()])
            await asyncio.sleep(60)

    with pytest.raises(BaseExceptionGroup) as lost:
        await work()
    assert lost.group_contains(UserError, match="the trainer at successor has taken the run over")
    assert await observer.depth("rollout") == 0
