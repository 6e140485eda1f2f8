"""The queue under faults: unreadable items, dead workers, and a Redis that restarts or refuses writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from cepo.errors import Unreachable
from cepo.service.bus import FAILURES, GROUP, IDLE_CLAIMS, MAX_FAILURES, Delivery, RedisBus
from cepo.testing import MemoryBus
from tests.helpers.factories import make_group, make_scored, make_task
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


async def test_an_item_that_was_deleted_while_a_worker_had_it_does_not_end_the_worker(bus: RedisBus) -> None:
    await bus.publish("verify", [make_group()])
    (item,) = await bus.receive("verify", "a", 1, 1.0)
    await bus._redis.xdel("{cepo}:verify", item.id)
    assert not await bus.complete(item, "teach", make_scored().model_copy(update={"rollout": item.message}))
    assert (await bus._redis.xpending("{cepo}:verify", GROUP))["pending"] == 0
    assert await bus.depth("teach") == 0


CALLS: dict[str, Callable[[RedisBus, Delivery], Awaitable[Any]]] = {
    "publish": lambda bus, item: bus.publish("rollout", [make_task()]),
    "receive": lambda bus, item: bus.receive("rollout", "a", 1, 0.01),
    "renew": lambda bus, item: bus.renew("a", [item]),
    "complete": lambda bus, item: bus.complete(item, "verify", make_group()),
    "depth": lambda bus, item: bus.depth("rollout"),
    "age": lambda bus, item: bus.age("rollout"),
    "ends": lambda bus, item: bus.ends("rollout"),
    "announce": lambda bus, item: bus.announce(make_task().policy),
}


@pytest.mark.parametrize("name", CALLS)
async def test_every_call_survives_a_redis_that_dies_where_the_client_does_not_repeat(
    bus: RedisBus, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The client repeats commands, but not the check of a connection that it takes from its pool."""
    await bus.publish("rollout", [make_task()])
    (item,) = await bus.receive("rollout", "a", 1, 1.0)
    pool, failures = bus._redis.connection_pool, [RedisConnectionError("Connection not ready")] * 2
    take = pool.get_connection

    async def get_connection(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return await take(*args)

    monkeypatch.setattr(pool, "get_connection", get_connection)
    await asyncio.wait_for(CALLS[name](bus, item), 10)
    assert not failures


@pytest.mark.parametrize("name", ["publish", "receive", "complete", "age", "ends"])
async def test_a_redis_that_restarts_between_the_loading_of_a_script_and_its_call_is_asked_again(
    bus: RedisBus, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    await bus.publish("rollout", [make_task()])
    (item,) = await bus.receive("rollout", "a", 1, 1.0)
    load, restarts = bus._redis.script_load, 2
    bus._next_claim.clear()
    await bus._redis.script_flush()

    async def script_load(script: str) -> Any:
        nonlocal restarts
        sha = await load(script)
        if restarts:
            restarts -= 1
            await bus._redis.script_flush()
        return sha

    monkeypatch.setattr(bus._redis, "script_load", script_load)
    await asyncio.wait_for(CALLS[name](bus, item), 10)
    assert restarts == 0
