"""The stage loop over the in-process bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from cepo.errors import EngineDown, UserError
from cepo.messages.groups import GroupFailed, Outcome, PromptTask, Purpose, RolloutGroup, Stage, StageMessage, TeachWhen
from cepo.service.bus import Delivery, RedisBus, ready
from cepo.service.stage import Handler, StageLoop, destination, task_of
from cepo.testing import MemoryBus
from tests.helpers.factories import make_evidenced, make_failed, make_group, make_scored, make_task, make_verdict
from tests.helpers.processes import RedisServer

CLAIM_SECONDS = 0.1
SPREAD = {"teach_when": TeachWhen.REWARD_SPREAD}


async def sample(message: StageMessage) -> StageMessage:
    return make_group(task=task_of(message))


@asynccontextmanager
async def working(
    bus: MemoryBus, handler: Handler, concurrency: int = 64, max_deliveries: int = 3
) -> AsyncIterator[asyncio.Event]:
    """A rollout stage at work; set the event to stop it."""
    stop = asyncio.Event()
    loop = StageLoop(bus, Stage.ROLLOUT, handler, concurrency, CLAIM_SECONDS, max_deliveries, consumer="w")
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(loop.run(stop))
        try:
            yield stop
        finally:
            stop.set()


async def arrived(bus: MemoryBus, stream: str, count: int = 1) -> list[StageMessage]:
    while await bus.depth(stream) < count:
        await asyncio.sleep(0.005)
    return [item.message for item in await bus.receive(stream, "test", count, 0)]


@pytest.mark.parametrize(
    ("stage", "result", "stream"),
    [
        (Stage.ROLLOUT, make_group(), "verify"),
        (Stage.VERIFY, make_scored(), "teach"),
        (Stage.TEACH, make_evidenced(), ready("run")),
        (Stage.VERIFY, make_scored(task=make_task(route=(Stage.ROLLOUT, Stage.VERIFY))), ready("run")),
        (Stage.ROLLOUT, make_group(task=make_task(route=(Stage.ROLLOUT, Stage.TEACH))), "teach"),
        (Stage.ROLLOUT, make_failed(stage=Stage.ROLLOUT), ready("run")),
        (Stage.VERIFY, make_scored([1, 1], make_task(**SPREAD)), ready("run")),
        (Stage.VERIFY, make_scored([1, 0], make_task(**SPREAD)), "teach"),
        (Stage.VERIFY, make_scored([0, 0]), "teach"),
    ],
)
def test_a_result_follows_the_route_of_its_task(stage: Stage, result: StageMessage, stream: str) -> None:
    assert destination(stage, result) == stream


def test_equal_rewards_of_unequal_outcomes_skip_the_teacher() -> None:
    wrong = make_verdict(0.0)
    timed_out = wrong.model_copy(update={"outcome": Outcome.TIMEOUT})
    scored = make_scored(task=make_task(**SPREAD), verdicts=[wrong, timed_out])
    assert destination(Stage.VERIFY, scored) == ready("run")


def test_evaluation_groups_have_their_own_names() -> None:
    assert make_task(purpose=Purpose.EVAL).group_id != make_task().group_id


async def test_results_arrive_at_the_next_stage_and_the_input_is_gone() -> None:
    bus = MemoryBus(CLAIM_SECONDS)
    await bus.publish("rollout", [make_task(index=i) for i in range(20)])
    async with working(bus, sample):
        groups = await arrived(bus, "verify", 20)
    assert sorted(task_of(group).index for group in groups) == list(range(20))
    assert await bus.depth("rollout") == 0


async def test_a_failure_is_tried_again() -> None:
    bus, attempts = MemoryBus(CLAIM_SECONDS), 0

    async def flaky(message: StageMessage) -> StageMessage:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise RuntimeError("not yet")
        return await sample(message)

    await bus.publish("rollout", [make_task()])
    async with working(bus, flaky, max_deliveries=100):
        (group,) = await arrived(bus, "verify")
    assert isinstance(group, RolloutGroup)
    assert attempts == 3


async def test_a_group_that_fails_to_the_limit_is_closed_as_failed() -> None:
    bus, attempts = MemoryBus(CLAIM_SECONDS), 0

    async def broken(message: StageMessage) -> StageMessage:
        nonlocal attempts
        attempts += 1
        raise RuntimeError("no engine")

    await bus.publish("rollout", [make_task()])
    async with working(bus, broken, max_deliveries=2):
        (failed,) = await arrived(bus, ready("run"))
    assert failed == GroupFailed(task=make_task(), stage=Stage.ROLLOUT, error="RuntimeError: no engine", deliveries=2)
    assert attempts == 2
    assert await bus.depth("rollout") == 0


async def test_a_group_whose_workers_crash_is_closed_as_failed_without_another_attempt() -> None:
    bus = MemoryBus(CLAIM_SECONDS)
    await bus.publish("rollout", [make_task()])
    for name in ("a", "b"):
        while not await bus.receive("rollout", name, 1, 0.05):
            pass
    async with working(bus, sample, max_deliveries=2):
        (failed,) = await arrived(bus, ready("run"))
    assert isinstance(failed, GroupFailed)
    assert "2 deliveries" in failed.error


async def test_what_a_user_caused_is_not_tried_again() -> None:
    bus, attempts = MemoryBus(CLAIM_SECONDS), 0

    async def refuse(message: StageMessage) -> StageMessage:
        nonlocal attempts
        attempts += 1
        raise UserError("the prompt is too long")

    await bus.publish("rollout", [make_task()])
    async with working(bus, refuse):
        (failed,) = await arrived(bus, ready("run"))
    assert isinstance(failed, GroupFailed)
    assert failed.error == "the prompt is too long"
    assert (attempts, failed.deliveries) == (1, 1)


async def test_a_failing_group_does_not_hold_up_the_others() -> None:
    bus = MemoryBus(CLAIM_SECONDS)

    async def broken_for_one(message: StageMessage) -> StageMessage:
        if task_of(message).index == 3:
            raise RuntimeError("bad prompt")
        return await sample(message)

    await bus.publish("rollout", [make_task(index=i) for i in range(8)])
    async with working(bus, broken_for_one):
        assert len(await arrived(bus, "verify", 7)) == 7
        assert len(await arrived(bus, ready("run"))) == 1


async def test_no_more_groups_are_in_progress_than_allowed() -> None:
    bus, now, most = MemoryBus(CLAIM_SECONDS), 0, 0

    async def count(message: StageMessage) -> StageMessage:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return await sample(message)

    await bus.publish("rollout", [make_task(index=i) for i in range(20)])
    async with working(bus, count, concurrency=3):
        await arrived(bus, "verify", 20)
    assert most == 3


async def test_work_longer_than_the_claim_time_is_done_once() -> None:
    class Renewed(MemoryBus):
        """A bus whose clock moves by half a claim time after each renewal."""

        def __init__(self) -> None:
            self.now, self.renewals = 0.0, 0
            super().__init__(CLAIM_SECONDS, lambda: self.now)

        async def renew(self, consumer: str, deliveries: Sequence[Delivery]) -> None:
            await super().renew(consumer, deliveries)
            self.now += CLAIM_SECONDS / 2
            self.renewals += 1

    bus, attempts = Renewed(), 0

    async def slow(message: StageMessage) -> StageMessage:
        nonlocal attempts
        attempts += 1
        while bus.renewals < 8:
            await asyncio.sleep(0.01)
        return await sample(message)

    await bus.publish("rollout", [make_task()])
    async with working(bus, slow), working(bus, slow):
        await arrived(bus, "verify")
    assert attempts == 1


async def test_stopping_finishes_what_is_in_progress_and_takes_nothing_new() -> None:
    bus, begun = MemoryBus(CLAIM_SECONDS), asyncio.Event()

    async def slow(message: StageMessage) -> StageMessage:
        begun.set()
        await asyncio.sleep(CLAIM_SECONDS * 3)
        return await sample(message)

    await bus.publish("rollout", [make_task(index=i) for i in range(4)])
    async with working(bus, slow, concurrency=2) as stop:
        await begun.wait()
        stop.set()
    assert (await bus.depth("verify"), await bus.depth("rollout")) == (2, 2)


async def test_a_bus_that_fails_to_renew_ends_the_loop() -> None:
    class Broken(MemoryBus):
        async def renew(self, consumer: str, deliveries: object) -> None:
            raise ConnectionError("gone")

    async def forever(message: StageMessage) -> StageMessage:
        await asyncio.sleep(60)
        return message

    bus = Broken(CLAIM_SECONDS)
    await bus.publish("rollout", [make_task()])
    with pytest.raises(ExceptionGroup) as caught:
        async with working(bus, forever):
            await asyncio.sleep(60)
    assert caught.group_contains(ConnectionError)


async def test_a_loop_ends_whatever_the_redis_client_is_doing(redis_server: RedisServer) -> None:
    async def wait(message: StageMessage) -> StageMessage:
        begun.set()
        await stop.wait()
        return await sample(message)

    for i in range(10):
        bus, begun, stop = RedisBus(redis_server.url), asyncio.Event(), asyncio.Event()
        await bus.publish("rollout", [make_task(index=i)])
        loop = StageLoop(bus, Stage.ROLLOUT, wait, claim_seconds=0.02)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(loop.run(stop))
            await begun.wait()
            await asyncio.sleep(0.05 + i / 1000)
            stop.set()
        await bus.close()
    bus = RedisBus(redis_server.url)
    assert await bus.depth("verify") == 10
    await bus.close()


@pytest.mark.parametrize("make", [make_task, make_group, make_scored, make_evidenced, make_failed])
def test_every_message_knows_its_task(make: Callable[[], StageMessage]) -> None:
    assert isinstance(task_of(make()), PromptTask)


async def test_a_dead_engine_ends_the_loop_and_leaves_its_items_pending() -> None:
    bus = MemoryBus(claim_seconds=0.05)
    await bus.publish("rollout", [make_task()])

    async def handler(task: PromptTask) -> RolloutGroup:
        raise EngineDown("gone")

    loop = StageLoop(bus, Stage.ROLLOUT, handler, claim_seconds=60)
    with pytest.raises(BaseExceptionGroup) as raised:
        await loop.run(asyncio.Event())
    assert raised.group_contains(EngineDown)
    await asyncio.sleep(0.1)
    assert len(await bus.receive("rollout", "another", 1, 60.0)) == 1
