"""The paper's Algorithm 1, as a loop over steps (arXiv:2605.19436)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from cepo.algo.base import Metrics, Supply
from cepo.errors import UserError
from cepo.messages.groups import BASE_POLICY, PolicyRef, PromptTask
from cepo.run.config import RunConfig
from cepo.run.folder import RunDir
from cepo.service.metrics import LAG_BOUND, PUBLISHED_VERSION
from services.trainer.checkpoint import Checkpoints, Progress
from services.trainer.collector import Collector
from services.trainer.feeder import Feeder
from services.trainer.learning.batch import pack
from services.trainer.learning.learner import Learner
from services.trainer.publisher import Publisher
from services.trainer.report import (
    Groups,
    Pieces,
    Trackers,
    accuracy,
    failures,
    finished,
    group_metrics,
    versions,
    write_rollouts,
)
from services.trainer.status import Status
from services.trainer.teacher import Teacher

log = logging.getLogger(__name__)


@dataclass
class Run:
    """The parts of a run."""

    config: RunConfig
    folder: RunDir
    feeder: Feeder
    collector: Collector
    learner: Learner
    publisher: Publisher
    teacher: Teacher
    checkpoints: Checkpoints
    trackers: Trackers
    status: Status
    pieces: Pieces
    beside: AbstractAsyncContextManager[None]
    """What this process does besides, for as long as the run goes on: the teacher's stage, where it is colocated."""


async def train(run: Run, stop: asyncio.Event) -> None:
    """Runs from the newest checkpoint to the last step; `stop` ends it after the step at hand, with a checkpoint."""
    progress = run.checkpoints.restore() or Progress(0, (BASE_POLICY,), (BASE_POLICY,))
    run.folder.truncate(progress.next_step)
    lag, policies, teachers = run.config.loop.lag, list(progress.policies), list(progress.teachers)
    LAG_BOUND.labels(run.folder.name).set(lag)
    before = await _evaluate(run, 0, policies[-1]) if progress.next_step == 0 else None
    in_flight = []
    for step in range(progress.next_step, progress.next_step + lag + 1):
        at = max(0, step - lag - policies[0].version)
        in_flight.append(await _publish(run, step, policies[at], teachers[at]))
    for step in range(progress.next_step, run.config.loop.steps):
        begun = time.perf_counter()
        row: Metrics = {"step": step, "policy_version": max(0, step - lag)}
        run.status.step = step
        run.status.enter("rollout")
        tasks = in_flight.pop(0)
        supply, exposed = run.feeder.supply(tasks), run.collector.exposed_seconds
        groups = await _sampled(run, tasks, step, supply)
        row["time/rollout_seconds"] = time.perf_counter() - begun
        row["time/teacher_exposed_seconds"] = run.collector.exposed_seconds - exposed
        run.status.enter("train")
        row |= group_metrics(groups) | versions(groups)
        row |= await asyncio.to_thread(_update, run, groups, step, supply)
        run.status.enter("publish")
        publishing = time.perf_counter()
        policies = [*policies, await run.publisher.publish(step + 1)][-lag - 1 :]
        teachers = [*teachers, await run.teacher.of(policies[-1], teachers[-1])][-lag - 1 :]
        row |= await asyncio.to_thread(run.teacher.metrics, tasks[0])
        run.status.policy = policies[-1]
        in_flight.append(await _publish(run, step + 1 + lag, policies[-1], teachers[-1]))
        row["time/publish_seconds"] = time.perf_counter() - publishing
        if step == 0 and before is not None:
            row["accuracy/eval_before"] = before
        evaluating = time.perf_counter()
        if step in run.config.eval_steps and (after := await _evaluate(run, step + 1, policies[-1])) is not None:
            row["accuracy/eval"] = after
        row["time/eval_seconds"] = time.perf_counter() - evaluating
        row["time/publish_to_first_token_seconds"] = run.publisher.reload_seconds(tasks[0].policy)
        row["time/step_seconds"] = time.perf_counter() - begun
        row |= run.status.take_peaks()
        run.trackers.step(row)
        run.status.row = row
        last = stop.is_set() or step + 1 == run.config.loop.steps
        await asyncio.to_thread(
            run.checkpoints.maybe_save, Progress(step + 1, tuple(policies), tuple(teachers)), last=last
        )
        if last:
            break
    run.status.enter("drained" if stop.is_set() else "done")


async def _publish(run: Run, step: int, policy: PolicyRef, teacher: PolicyRef) -> Sequence[PromptTask]:
    PUBLISHED_VERSION.labels(run.folder.name).set(policy.version)
    return await _sent(run, run.feeder.tasks(step, policy, teacher))


async def _sent(run: Run, tasks: Sequence[PromptTask]) -> Sequence[PromptTask]:
    run.collector.expect(tasks)
    await run.feeder.publish(tasks)
    return tasks


async def _sampled(run: Run, tasks: Sequence[PromptTask], step: int, supply: Supply) -> Groups:
    """A step's groups, with whatever the algorithm wants once it has seen them; nothing is sent twice."""
    groups, wanted = await run.collector.take(tasks), run.config.algorithm.follow_up
    had = {task.group_id for task in tasks}
    while more := [task for task in wanted(finished(groups), step, supply) if task.group_id not in had]:
        had |= {task.group_id for task in more}
        groups += await run.collector.take(await _sent(run, more))
    run.folder.append_failures(failures(groups, step))
    return groups


async def _evaluate(run: Run, step: int, policy: PolicyRef) -> float | None:
    """Accuracy on the held-out problems; None without any."""
    tasks = run.feeder.eval_tasks(step, policy)
    if not tasks:
        return None
    run.status.enter("eval")
    groups = await run.collector.take(await _sent(run, tasks))
    run.folder.append_failures(failures(groups, max(0, step - 1)))  # the step whose row has the accuracy
    if not finished(groups):
        raise UserError(f"every evaluation group failed, the first because: {groups[0].error}")  # type: ignore[union-attr]
    failed = len(groups) - len(finished(groups))
    if failed:
        log.warning("%d of %d evaluation groups failed and are not counted in the accuracy", failed, len(groups))
    return accuracy(groups)


def _update(run: Run, groups: Groups, step: int, supply: Supply) -> Metrics:
    done = finished(groups)
    if not done:
        raise UserError(f"every group of step {step} failed, the first because: {groups[0].error}")  # type: ignore[union-attr]
    chosen = run.config.algorithm.select(done, supply)
    adv_BT, metrics = run.learner.learn(pack(chosen), step)
    prompts = [group for group in chosen if group.task.origin is None]
    write_rollouts(run.folder.rollouts_of(step), prompts, adv_BT, run.config.telemetry.rollouts_per_step, run.pieces)
    return metrics
