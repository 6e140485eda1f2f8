"""The collector returns each group of a step once, over the in-process bus."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from functools import partial

import pytest

from cepo.messages.groups import EvidencedGroup, GroupFailed, PolicyProof, PromptTask, Purpose, Stage, StageMessage
from cepo.service.bus import ready
from cepo.service.stage import task_of
from cepo.testing import MemoryBus
from services.trainer.collector import Collector, LossDetector
from tests.helpers.factories import POLICY, make_evidenced, make_failed, make_group, make_scored, make_task
from tests.unit.observe.alerting import counted

READY = ready("run")
TASKS = tuple(make_task(index=index) for index in range(3))


def proven(proof: PolicyProof) -> None:
    """Accepts every proof."""


def make_collector(bus: MemoryBus, tasks: Sequence[PromptTask] = TASKS) -> Collector:
    collector = Collector(bus, "run", proven, partial(bus.publish, "rollout"))
    collector.expect(tasks)
    return collector


async def taken(collector: Collector, tasks: Sequence[PromptTask] = TASKS) -> list[EvidencedGroup | GroupFailed]:
    async with asyncio.timeout(60):
        return await collector.take(tasks)


async def test_groups_come_in_the_order_of_the_tasks() -> None:
    bus = MemoryBus()
    groups = [make_evidenced(task=task) for task in TASKS]
    await bus.publish(READY, groups[::-1])
    assert await taken(make_collector(bus)) == groups
    assert await bus.depth(READY) == 0


async def test_it_waits_for_the_last_group() -> None:
    bus = MemoryBus()
    await bus.publish(READY, [make_evidenced(task=task) for task in TASKS[:2]])
    taking = asyncio.create_task(taken(make_collector(bus)))
    await asyncio.sleep(0.05)
    assert not taking.done()
    await bus.publish(READY, [make_evidenced(task=TASKS[2])])
    assert len(await taking) == 3


async def test_a_group_that_comes_twice_counts_once_and_the_first_one_wins() -> None:
    bus = MemoryBus()
    first, second = make_evidenced([1.0, 0.0], TASKS[0]), make_evidenced([0.0, 0.0], TASKS[0])
    await bus.publish(READY, [first, second, *(make_evidenced(task=task) for task in TASKS[1:])])
    collector = make_collector(bus)
    assert (await taken(collector))[0] == first
    await bus.publish(READY, [second])
    following = make_task(step=1)
    collector.expect([following])
    await bus.publish(READY, [make_evidenced(task=following)])
    assert await taken(collector, [following]) == [make_evidenced(task=following)]
    assert await bus.depth(READY) == 0


@pytest.mark.parametrize(
    "changes",
    [{"index": 9}, {"step": 4}, {"seed": 2}, {"policy": POLICY}, {"purpose": Purpose.EVAL}, {"reference_answer": "8"}],
    ids=lambda changes: next(iter(changes)),
)
async def test_a_group_that_was_not_asked_for_is_dropped(changes: dict[str, object]) -> None:
    bus = MemoryBus()
    foreign = make_evidenced([0.0, 0.0], make_task(**{"index": 0} | changes))
    groups = [make_evidenced(task=task) for task in TASKS]
    await bus.publish(READY, [foreign, *groups])
    assert await taken(make_collector(bus)) == groups
    assert await bus.depth(READY) == 0


async def test_failed_groups_close_the_count() -> None:
    bus = MemoryBus()
    sent: list[StageMessage] = [
        make_failed(TASKS[0]),
        make_evidenced(task=TASKS[1]),
        make_failed(TASKS[2], Stage.TEACH),
    ]
    await bus.publish(READY, sent)
    assert await taken(make_collector(bus)) == sent


async def test_a_group_that_skipped_the_teacher_has_no_evidence() -> None:
    bus = MemoryBus()
    await bus.publish(READY, [make_scored(task=TASKS[0])])
    assert await taken(make_collector(bus), TASKS[:1]) == [EvidencedGroup(scored=make_scored(task=TASKS[0]))]


@pytest.mark.parametrize(("used_for", "stage"), [("policy", Stage.ROLLOUT), ("teacher", Stage.TEACH)])
async def test_a_group_of_unproven_weights_fails_and_says_why(used_for: str, stage: Stage) -> None:
    def prove(proof: PolicyProof) -> str | None:
        return f"{proof.engine} serves other weights" if proof.policy == POLICY else None

    bus = MemoryBus()
    collector = Collector(bus, "run", prove, partial(bus.publish, "rollout"))
    tasks = [make_task(**{used_for: POLICY}), TASKS[1]]
    collector.expect(tasks)
    await bus.publish(READY, [make_evidenced(task=task) for task in tasks])
    first, second = await taken(collector, tasks)
    assert first == GroupFailed(task=tasks[0], stage=stage, error="toy serves other weights", deliveries=0)
    assert second == make_evidenced(task=TASKS[1])


async def test_groups_of_later_steps_are_kept_until_they_are_taken() -> None:
    bus = MemoryBus()
    later = make_task(step=1)
    collector = make_collector(bus, [*TASKS, later])
    await bus.publish(READY, [make_evidenced(task=task) for task in (later, *TASKS)])
    await taken(collector)
    assert await taken(collector, [later]) == [make_evidenced(task=later)]


async def collected_by(bus: MemoryBus, collector: Collector, stages: int = 0) -> list[EvidencedGroup | GroupFailed]:
    """Takes the groups while a rollout stage finishes every task it can, and loses the first `stages` results."""
    finished = itertools.count()

    async def work() -> None:
        while True:
            for item in await bus.receive("rollout", "worker", 8, 0.01):
                task = task_of(item.message)
                result = make_evidenced(task=task) if next(finished) >= stages else None
                await bus.complete(item, READY, result)

    working = asyncio.create_task(work())
    try:
        return await taken(collector)
    finally:
        working.cancel()


async def test_groups_that_redis_lost_are_published_again_and_counted() -> None:
    bus, before = MemoryBus(), counted("cepo_trainer_groups_total", result="reissued")
    collector = make_collector(bus)
    await bus.publish("rollout", TASKS)
    await bus.lose("rollout")
    assert await collected_by(bus, collector) == [make_evidenced(task=task) for task in TASKS]
    assert counted("cepo_trainer_groups_total", result="reissued") == before + len(TASKS)


async def test_a_group_that_is_lost_in_a_stage_is_published_again_while_the_others_count_once() -> None:
    bus = MemoryBus()
    collector = make_collector(bus)
    await bus.publish("rollout", TASKS)
    assert await collected_by(bus, collector, stages=1) == [make_evidenced(task=task) for task in TASKS]
    assert await bus.depth(READY) == 0


async def test_a_group_that_is_lost_every_time_fails_and_ends_the_step() -> None:
    bus = MemoryBus()
    collector = make_collector(bus)
    await bus.publish("rollout", TASKS)
    groups = await collected_by(bus, collector, stages=1000)
    assert {type(group) for group in groups} == {GroupFailed}
    assert "lost 4 times" in groups[0].error  # type: ignore[union-attr]


async def test_a_group_is_not_lost_while_another_run_keeps_the_streams_busy() -> None:
    bus, before = MemoryBus(), counted("cepo_trainer_groups_total", result="reissued")
    collector = make_collector(bus, TASKS[:1])
    losses = LossDetector(bus, ["rollout", "verify", "teach", READY])
    await bus.publish("rollout", TASKS[:1])
    assert [await losses.passed() for _ in range(20)] == [False] * 20  # the group waits for its worker
    rounds = 0
    for _ in range(6):  # the group moves on, and another run's groups take its place
        (item,) = await bus.receive("rollout", "worker", 1, 1.0)
        await bus.publish("rollout", [make_task(run="another")])
        await bus.complete(item, "verify", None)
        rounds += await losses.passed()
    assert rounds == 3  # true from the fourth round on
    await bus.publish(READY, [make_evidenced(task=TASKS[0])])
    await taken(collector, TASKS[:1])
    assert counted("cepo_trainer_groups_total", result="reissued") == before


async def test_a_group_that_is_not_finished_does_not_end_the_trainer() -> None:
    bus = MemoryBus()
    await bus.publish(READY, [make_group(task=TASKS[0]), *(make_evidenced(task=task) for task in TASKS)])
    assert await taken(make_collector(bus)) == [make_evidenced(task=task) for task in TASKS]
