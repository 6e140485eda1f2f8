"""The queue under faults: unreadable items, dead workers, a Redis that refuses writes, and two trainers on one run."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cepo.errors import Unreachable, UserError
from cepo.service.bus import FAILURES, GROUP, IDLE_CLAIMS, MAX_FAILURES, RedisBus, ready
from cepo.service.lease import LEASE_SECONDS, Lease
from cepo.service.scripts import ACQUIRE, RENEW
from cepo.testing import MemoryBus
from tests.helpers.factories import make_group, make_task
from tests.helpers.processes import RedisServer
from tests.unit.observe.alerting import counted

CLAIM_SECONDS = 0.05
DELIVERIES = 3


@pytest.fixture
async def bus(redis_server: RedisServer) -> AsyncIterator[RedisBus]:
    made = RedisBus(redis_server.url, CLAIM_SECONDS, max_deliveries=DELIVERIES)
    yield made
    await made.close()


@pytest.fixture
async def other(redis_server: RedisServer) -> AsyncIterator[RedisBus]:
    made = RedisBus(redis_server.url, CLAIM_SECONDS, max_deliveries=DELIVERIES)
    yield made
    await made.close()


async def until(holds: Callable[[], Any], seconds: float = 60.0) -> None:
    """Waits until a condition, or the result of a coroutine function, is true."""
    async with asyncio.timeout(seconds):
        while not (await result if asyncio.iscoroutine(result := holds()) else result):
            await asyncio.sleep(0.01)


UNREADABLE = [(b"RolloutGroup", b"\xff\xff\xff"), (b"RolloutGroupV2", b"\n\x03new"), (b"PromptTask", b"\xa0\x01\x07")]


async def test_an_item_that_cannot_be_read_is_delivered_to_the_limit_and_kept_as_it_is(bus: RedisBus) -> None:
    before = counted("cepo_unreadable_total", stream="rollout")
    for name, body in UNREADABLE:
        await bus._redis.xadd("{cepo}:rollout", {"type": name, "body": body})
    await bus._redis.xadd("{cepo}:rollout", {"x": b"\x00\xff"})
    await bus.publish("rollout", [make_task()])
    (item,) = await bus.receive("rollout", "a", 10, 1.0)
    assert item.message == make_task()
    await bus.complete(item, "verify", make_group())

    async def emptied() -> bool:
        assert await bus.receive("rollout", "a", 10, 0.01) == []
        return await bus.depth("rollout") == 0

    await until(emptied)
    kept = await bus._redis.xrange("{cepo}:" + FAILURES)
    assert sorted((fields.get(b"entry.type"), fields.get(b"entry.body")) for _, fields in kept[:3]) == sorted(
        UNREADABLE
    )
    assert kept[3][1][b"entry.x"] == b"\x00\xff"
    assert {fields[b"stream"] for _, fields in kept} == {b"rollout"}
    assert b"unknown message type 'RolloutGroupV2'" in {fields[b"error"] for _, fields in kept}
    assert counted("cepo_unreadable_total", stream="rollout") == before + 4
    assert (await bus._redis.xpending("{cepo}:rollout", GROUP))["pending"] == 0


async def test_an_unreadable_item_is_tried_by_every_worker_before_it_is_given_up(bus: RedisBus) -> None:
    await bus._redis.xadd("{cepo}:rollout", {"type": "Newer", "body": b""})
    for delivery in range(1, DELIVERIES):
        await bus.receive("rollout", f"worker-{delivery}", 10, 0.01)
        (row,) = await bus._redis.xpending_range("{cepo}:rollout", GROUP, "-", "+", 10)
        assert row["times_delivered"] == delivery
        await asyncio.sleep(1.2 * CLAIM_SECONDS)
        bus._next_claim.clear()
    await bus.receive("rollout", "the last", 10, 0.01)
    assert await bus.depth("rollout") == 0


async def test_the_stream_of_failures_keeps_the_newest(bus: RedisBus) -> None:
    bus._max_deliveries = 1
    for i in range(MAX_FAILURES + 7):
        await bus._redis.xadd("{cepo}:rollout", {"type": "Newer", "body": str(i)})
    await bus.receive("rollout", "a", 1000, 0.01)
    assert await bus.depth(FAILURES) == MAX_FAILURES
    assert (await bus._redis.xrange("{cepo}:" + FAILURES))[-1][1][b"entry.body"] == str(MAX_FAILURES + 6).encode()


async def test_an_unreadable_item_in_memory_is_given_up_at_the_limit_too() -> None:
    now = 0.0
    bus = MemoryBus(1.0, lambda: now, max_deliveries=DELIVERIES)
    await bus.put("rollout", "RolloutGroup", b"\xff\xff\xff")
    for delivery in range(1, DELIVERIES + 1):
        assert await bus.receive("rollout", "a", 10, 0.01) == []
        assert await bus.depth("rollout") == (delivery < DELIVERIES)
        now += 2.0
    assert bus.unreadable == [("RolloutGroup", b"\xff\xff\xff")]


async def test_a_dead_workers_consumer_is_removed_once_its_items_are_taken_over(bus: RedisBus, other: RedisBus) -> None:
    await bus.publish("rollout", [make_task()])
    assert len(await other.receive("rollout", "dead-holding", 1, 1.0)) == 1
    await other.receive("rollout", "dead-idle", 1, 0.01)
    seen: list[int] = []

    async def only_the_living() -> bool:
        seen.extend(item.deliveries for item in await bus.receive("rollout", "alive", 1, 0.01))
        return {row["name"] for row in await bus._redis.xinfo_consumers("{cepo}:rollout", GROUP)} == {b"alive"}

    await until(only_the_living)
    assert seen
    assert await bus.depth("rollout") == 1  # taken over, not lost


async def test_a_consumer_that_holds_an_item_is_never_removed(bus: RedisBus) -> None:
    await bus.publish("rollout", [make_task()])
    await bus.receive("rollout", "stalled", 1, 1.0)
    await bus._redis.xgroup_createconsumer("{cepo}:rollout", GROUP, "gone")
    await asyncio.sleep(IDLE_CLAIMS * CLAIM_SECONDS + 0.05)
    await bus._forget(keys=["{cepo}:rollout"], args=[GROUP, int(IDLE_CLAIMS * CLAIM_SECONDS * 1000)])
    assert [row["name"] for row in await bus._redis.xinfo_consumers("{cepo}:rollout", GROUP)] == [b"stalled"]


async def test_a_removed_consumer_that_lives_works_on(bus: RedisBus) -> None:
    waiting = asyncio.create_task(bus.receive("rollout", "waiting", 1, 2.0))

    async def blocked() -> bool:
        return bool((await bus._redis.info("clients"))["blocked_clients"])

    await until(blocked)
    await bus._redis.xgroup_delconsumer("{cepo}:rollout", GROUP, "waiting")
    await bus.publish("rollout", [make_task()])
    (item,) = await waiting
    assert await bus.complete(item, "verify", make_group())


async def test_a_full_redis_is_waited_for_and_takes_no_half_of_a_hop(bus: RedisBus) -> None:
    await bus.publish("rollout", [make_task()])
    (item,) = await bus.receive("rollout", "a", 1, 1.0)
    await bus._redis.config_set("maxmemory", 1)
    publishing = asyncio.create_task(bus.publish("rollout", [make_task(index=1)] * 5))
    assert await bus.complete(item, "verify", make_group())  # a hop frees what it takes
    assert await bus.depth("verify") == 1
    await asyncio.sleep(0.2)
    assert (await bus.depth("rollout"), publishing.done()) == (0, False)
    await bus._redis.config_set("maxmemory", 0)
    await asyncio.wait_for(publishing, 60)
    assert await bus.depth("rollout") == 5


async def test_a_redis_that_refuses_writes_for_too_long_is_named_in_one_line(redis_server: RedisServer) -> None:
    bus = RedisBus(redis_server.url, retry_seconds=0.1)
    await bus._redis.config_set("maxmemory", 1)
    with pytest.raises(Unreachable, match=r"Redis at 127.0.0.1:\d+/0 refuses writes: .*; give it memory or disk space"):
        await bus.publish("rollout", [make_task()])
    await bus.close()


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
