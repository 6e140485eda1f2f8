"""Every bus gives the same guarantees; the suite runs over each of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis import Redis

from cepo.errors import Unreachable, UserError
from cepo.messages.arrays import Int32Array
from cepo.messages.groups import PromptTask, RolloutGroup, ScoredGroup
from cepo.messages.wire import to_bytes
from cepo.net.settings import Settings
from cepo.service.bus import GROUP, Bus, Delivery, RedisBus
from cepo.service.stage import task_of
from cepo.testing import MemoryBus
from tests.helpers.factories import POLICY, make_failed, make_group, make_task, make_verdict
from tests.helpers.processes import RedisServer

CLAIM_SECONDS = 300.0
"""A claim time that no test reaches; tests expire claims themselves."""
BRIEF_SECONDS = 0.3
"""A claim time for tests of many workers, whose claims expire by themselves."""


class AgeingMemory(MemoryBus):
    """A bus in memory whose clock the test advances."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(CLAIM_SECONDS, lambda: self.now)

    async def later(self, seconds: float) -> None:
        """Ages all claims by this many seconds."""
        self.now += seconds


class AgeingRedis(RedisBus):
    """The same on a real Redis, for the items of the stream `in`."""

    async def later(self, seconds: float) -> None:
        for row in await self._redis.xpending_range("{cepo}:in", GROUP, "-", "+", 1000):
            idle, mine = row["time_since_delivered"] + int(1000 * seconds), [row["message_id"]]
            await self._redis.xclaim("{cepo}:in", GROUP, row["consumer"], 0, mine, idle=idle, justid=True)
        self._next_claim.clear()


Ageing = AgeingMemory | AgeingRedis


@pytest.fixture(params=["memory", "redis"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Ageing]:
    memory = request.param == "memory"
    made = AgeingMemory() if memory else AgeingRedis(request.getfixturevalue("redis_server").url, CLAIM_SECONDS)
    yield made
    await made.close()


@pytest.fixture(params=["memory", "redis"])
async def brief_bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    memory = request.param == "memory"
    made = MemoryBus(BRIEF_SECONDS) if memory else RedisBus(request.getfixturevalue("redis_server").url, BRIEF_SECONDS)
    yield made
    await made.close()


@pytest.fixture
async def redis_bus(redis_server: RedisServer) -> AsyncIterator[RedisBus]:
    made = RedisBus(redis_server.url, BRIEF_SECONDS)
    yield made
    await made.close()


async def take(bus: Bus, stream: str = "in", consumer: str = "a", count: int = 10, wait: float = 1.0) -> list[Delivery]:
    return await bus.receive(stream, consumer, count, wait)


async def take_abandoned(bus: Ageing, consumer: str) -> Delivery:
    """The only item, after the claim of another consumer expires."""
    await bus.later(CLAIM_SECONDS)
    (item,) = await take(bus, consumer=consumer)
    return item


async def drained(bus: Bus, stream: str) -> list[int]:
    """Index of every task on a stream, taken off it."""
    found: list[int] = []
    while items := await take(bus, stream, count=100, wait=0.05):
        for item in items:
            found.append(task_of(item.message).index)
            await bus.complete(item, "nowhere", None)
    return found


async def test_items_published_before_anybody_listens_are_delivered_in_order(bus: Bus) -> None:
    tasks = [make_task(index=i) for i in range(5)]
    await bus.publish("in", tasks)
    assert [item.message for item in await take(bus)] == tasks


async def test_an_item_is_delivered_to_one_worker_only(bus: Bus) -> None:
    await bus.publish("in", [make_task()])
    assert len(await take(bus)) == 1
    assert await take(bus, consumer="b", wait=0.05) == []


async def test_receive_takes_no_more_than_asked_for(bus: Bus) -> None:
    await bus.publish("in", [make_task(index=i) for i in range(5)])
    assert [len(await take(bus, count=2)) for _ in range(3)] == [2, 2, 1]


async def test_receive_waits_for_the_first_item(bus: Bus) -> None:
    waiting = asyncio.create_task(take(bus, wait=60.0))
    await asyncio.sleep(0.05)
    await bus.publish("in", [make_task()])
    assert len(await waiting) == 1


async def test_a_hop_moves_an_item_and_deletes_the_input(bus: Bus) -> None:
    await bus.publish("in", [make_task()])
    (item,) = await take(bus)
    assert await bus.complete(item, "out", make_group())
    assert await bus.depth("in") == 0
    (moved,) = await take(bus, "out")
    assert moved.message == make_group()


@pytest.mark.parametrize("samples", [1, 2, 40])
async def test_a_result_that_holds_its_input_arrives_whole(bus: Bus, samples: int) -> None:
    group = make_group(["long " * 50] * samples, make_task(samples=samples))
    await bus.publish("in", [group])
    (item,) = await take(bus)
    assert isinstance(item.message, RolloutGroup)
    scored = ScoredGroup(rollout=item.message, verdicts=tuple(make_verdict() for _ in range(samples)))
    assert await bus.complete(item, "out", scored)
    (arrived,) = await take(bus, "out")
    assert arrived.message == ScoredGroup(rollout=group, verdicts=scored.verdicts)


async def test_a_result_with_a_changed_input_arrives_changed(bus: Bus) -> None:
    await bus.publish("in", [make_group()])
    (item,) = await take(bus)
    assert isinstance(item.message, RolloutGroup)
    changed = item.message.model_copy(update={"prompt_token_ids": Int32Array.of([1, 2, 3])})
    scored = ScoredGroup(rollout=changed, verdicts=(make_verdict(), make_verdict()))
    await bus.complete(item, "out", scored)
    (arrived,) = await take(bus, "out")
    assert arrived.message == scored


async def test_a_hop_sends_only_what_it_adds(redis_bus: RedisBus, redis_server: RedisServer) -> None:
    group = make_group(["long " * 5000] * 2)
    await redis_bus.publish("in", [group])
    (item,) = await take(redis_bus)
    assert isinstance(item.message, RolloutGroup)
    with Redis.from_url(redis_server.url) as client:
        before = client.info()["total_net_input_bytes"]
        await redis_bus.complete(
            item, "out", ScoredGroup(rollout=item.message, verdicts=(make_verdict(), make_verdict()))
        )
        assert client.info()["total_net_input_bytes"] - before < len(to_bytes(group)) / 10


async def test_a_hop_without_result_only_ends_the_item(bus: Bus) -> None:
    await bus.publish("in", [make_failed()])
    (item,) = await take(bus)
    assert await bus.complete(item, "out", None)
    assert (await bus.depth("in"), await bus.depth("out")) == (0, 0)


async def test_the_age_of_a_stream_is_that_of_its_oldest_item_held_or_not(bus: Bus) -> None:
    assert await bus.age("in") == 0.0
    await bus.publish("in", [make_task()])
    await asyncio.sleep(0.1)
    between = time.time()
    await bus.publish("in", [make_task(index=1)])
    (item,) = await take(bus, count=1)
    assert item.published_at < between
    begun, age, ended = time.time(), await bus.age("in"), time.time()
    assert begun - 0.01 <= item.published_at + age <= ended + 0.01  # Redis has whole milliseconds
    await bus.complete(item, "out", None)
    assert await bus.age("in") <= time.time() - between + 0.01


async def test_two_workers_that_finish_the_same_item_publish_once(bus: Ageing) -> None:
    await bus.publish("in", [make_task()])
    (slow,) = await take(bus, consumer="slow")
    again = await take_abandoned(bus, "quick")
    assert again.id == slow.id
    won = [await bus.complete(item, "out", make_group()) for item in (again, slow)]
    assert won == [True, False]
    assert await bus.depth("out") == 1


async def test_a_crash_between_work_and_hop_leaves_the_item_to_another_with_its_deliveries_counted(bus: Ageing) -> None:
    await bus.publish("in", [make_task()])
    (first,) = await take(bus, consumer="a")
    counts = [first.deliveries, *[(await take_abandoned(bus, name)).deliveries for name in ("b", "c")]]
    assert counts == [1, 2, 3]
    assert await bus.depth("in") == 1


async def test_an_item_is_not_reclaimed_before_its_time(bus: Ageing) -> None:
    await bus.publish("in", [make_task()])
    await take(bus)
    assert await take(bus, consumer="b", wait=0.1) == []
    await bus.later(CLAIM_SECONDS / 2)
    assert await take(bus, consumer="b", wait=0.05) == []


async def test_renewing_keeps_an_item(bus: Ageing) -> None:
    await bus.publish("in", [make_task()])
    items = await take(bus)
    for _ in range(8):
        await bus.later(CLAIM_SECONDS / 2)
        await bus.renew("a", items)
        assert await take(bus, consumer="b", wait=0.01) == []
    again = await take_abandoned(bus, "b")
    assert again.deliveries == 2  # renewing is no delivery


async def test_renewing_an_item_that_ended_does_not_bring_it_back(bus: Ageing) -> None:
    await bus.publish("in", [make_task()])
    items = await take(bus)
    await bus.complete(items[0], "out", None)
    await bus.renew("a", items)
    await bus.later(CLAIM_SECONDS)
    assert await take(bus, wait=0.05) == []


async def test_abandoned_items_are_found_behind_renewed_ones(bus: Ageing) -> None:
    await bus.publish("in", [make_task(index=i) for i in range(60)])
    kept = await take(bus, consumer="busy", count=55)
    await take(bus, consumer="crashed", count=5)
    await bus.later(CLAIM_SECONDS)
    found: set[int] = set()
    for _ in range(60):
        await bus.renew("busy", kept)
        found |= {task_of(item.message).index for item in await take(bus, consumer="b", count=1, wait=0.02)}
        if len(found) == 5:
            break
    assert found == set(range(55, 60))


async def test_announced_policies_reach_those_who_listen(bus: Bus) -> None:
    listening = bus.announcements()
    heard = asyncio.ensure_future(anext(listening))
    while not heard.done():  # the announcer cannot know when the subscription is active
        await bus.announce(POLICY)
        await asyncio.sleep(0.01)
    assert await heard == POLICY


async def hop_all(bus: Bus, name: str, total: int, rng: random.Random) -> int:
    """A worker that sometimes stalls longer than the claim time; returns the number of its deliveries."""
    given = 0
    while await bus.depth("out") < total:
        for item in await take(bus, consumer=name, count=8, wait=0.05):
            given += 1
            if rng.random() < 0.03:
                await asyncio.sleep(BRIEF_SECONDS * 1.5)
            assert isinstance(item.message, PromptTask)
            await bus.complete(item, "out", make_group(task=item.message))
    return given


async def test_300_items_with_stalling_workers_are_published_exactly_once(brief_bus: Bus) -> None:
    await brief_bus.publish("in", [make_task(index=i) for i in range(300)])
    workers = [hop_all(brief_bus, f"w{i}", 300, random.Random(i)) for i in range(6)]
    given = await asyncio.gather(*workers)
    assert sum(given) > 300, "nobody stalled: the test shows nothing"
    assert await brief_bus.depth("in") == 0
    assert Counter(await drained(brief_bus, "out")) == Counter(range(300))


async def test_redis_may_be_killed_and_restarted_without_loss(redis_bus: RedisBus, redis_server: RedisServer) -> None:
    await redis_bus.publish("in", [make_task(index=i) for i in range(200)])
    working = asyncio.gather(*(hop_all(redis_bus, f"w{i}", 200, random.Random(i)) for i in range(4)))
    while await redis_bus.depth("out") < 50:
        await asyncio.sleep(0.005)
    redis_server.kill()
    await asyncio.sleep(0.2)
    redis_server.start()
    await asyncio.wait_for(working, 100)
    assert await redis_bus.depth("in") == 0
    assert Counter(await drained(redis_bus, "out")) == Counter(range(200))


async def test_a_message_that_cannot_be_read_does_not_stop_the_others(
    redis_bus: RedisBus, caplog: pytest.LogCaptureFixture
) -> None:
    unreadable: list[dict[Any, Any]] = [
        {"type": "Nonsense", "body": ""},
        {"type": "PromptTask", "body": b"\xff"},
        {"x": 1},
    ]
    for fields in unreadable:
        await redis_bus._redis.xadd("{cepo}:in", fields)
    await redis_bus.publish("in", [make_task()])
    assert [item.message for item in await take(redis_bus)] == [make_task()]
    assert sum("cannot be read" in line for line in caplog.messages) == 3


async def test_an_absent_redis_is_named_in_one_line(free_port: Callable[[], int]) -> None:
    port = free_port()
    with pytest.raises(Unreachable) as caught:
        await RedisBus.connect(Settings(redis_url=f"redis://:secret@127.0.0.1:{port}/0"), patience=0.3)
    message = str(caught.value)
    assert f"127.0.0.1:{port}" in message
    assert "CEPO_REDIS_URL" in message
    assert "\n" not in message
    assert "secret" not in message


def test_a_malformed_address_is_a_user_error() -> None:
    with pytest.raises(UserError, match="redis://"):
        RedisBus("localhost")


async def test_a_redis_that_is_still_starting_is_waited_for(redis_server: RedisServer) -> None:
    redis_server.kill()
    connecting = asyncio.create_task(RedisBus.connect(Settings(redis_url=redis_server.url), patience=60))
    await asyncio.sleep(0.3)
    assert not connecting.done()
    await asyncio.to_thread(redis_server.start)
    bus = await connecting
    assert await bus.depth("in") == 0
    await bus.close()


async def test_a_redis_that_refuses_us_is_not_waited_for(redis_server: RedisServer) -> None:
    with pytest.raises(UserError, match=f"Redis at 127.0.0.1:{redis_server.port}/99 rejected the connection"):
        await RedisBus.connect(Settings(redis_url=redis_server.url.replace("/0", "/99")), patience=3600)


async def test_hundreds_of_hops_may_end_at_once(bus: Bus) -> None:
    tasks = [make_task(index=index) for index in range(300)]
    await bus.publish("in", tasks)
    items: list[Delivery] = []
    while len(items) < len(tasks):
        items += await bus.receive("in", "worker", len(tasks), 1.0)
    assert all(await asyncio.gather(*(bus.complete(item, "out", item.message) for item in items)))
    assert await bus.depth("out") == len(tasks)
    assert await bus.depth("in") == 0
