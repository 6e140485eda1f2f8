"""The paper's Algorithm 1 as a loop over steps (arXiv:2605.19436)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from cepo.algo.base import Metrics, Supply
from cepo.errors import UserError
from cepo.messages.groups import BASE_POLICY, PromptTask
from cepo.run.best import best_of, plateaued
from cepo.run.config import RunConfig
from cepo.run.folder import RunDir
from cepo.run.lines import Lines
from cepo.run.resuming import changed_model
from cepo.service.metrics import LAG_BOUND, PUBLISHED_VERSION
from services.trainer.checkpoint import Checkpoints
from services.trainer.collector import Collector
from services.trainer.feeder import Feeder
from services.trainer.finite import MAX_SKIPPED, diverged
from services.trainer.gap import GapWatch
from services.trainer.learning.batch import pack
from services.trainer.learning.learner import Learner
from services.trainer.pipeline import Pipeline
from services.trainer.publisher import Publisher
from services.trainer.report import (
    ANSWER_GROUPS,
    Groups,
    accuracy,
    answer_share,
    failures,
    finished,
    first_failure,
    group_metrics,
    halves,
    versions,
)
from services.trainer.rollouts import RolloutWriter
from services.trainer.sources import source_metrics
from services.trainer.status import Status, StepRow
from services.trainer.teacher import Teacher
from services.trainer.trackers import Trackers

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
    rollouts: RolloutWriter
    beside: AbstractAsyncContextManager[None]
    """Runs beside the loop in this process: the teacher's stage if it is colocated, otherwise nothing."""
    gap: GapWatch = field(init=False)

    def __post_init__(self) -> None:
        self.gap = GapWatch(self.config)


async def train(run: Run, stop: asyncio.Event) -> None:
    """Trains from the newest checkpoint to the last step.

    Args:
        stop: once it is set, the run ends after the current step, with a checkpoint.
    """
    pipeline, before = await _start(run)
    for step in range(run.config.loop.steps if _plateaued(run) else pipeline.next_step, run.config.loop.steps):
        tasks = await _complete(run, pipeline, stop)
        if not tasks:
            await asyncio.to_thread(run.checkpoints.maybe_save, pipeline, last=True)
            break
        supply = run.feeder.supply(tasks)
        row = StepRow(run.status, tasks[0], before if step == 0 else {})
        with row.phase("rollout"):
            groups = await _collect(run, tasks, supply, row)
            row.add(_remembered(run, groups, step))
        with row.phase("train"):
            row.add(await asyncio.to_thread(_learn, run, groups, supply, step))
        with row.phase("publish"):
            pipeline = await _publish_policy(run, pipeline)
            row.add(await asyncio.to_thread(run.teacher.metrics, tasks[0]))
            await _publish_tasks(run, _tasks(run, pipeline, pipeline.steps[-1]))
            _follow(run, pipeline)
        if step in run.config.eval_steps:
            with row.phase("eval"):
                groups = await _evaluated(run, pipeline)
                row.add({"accuracy/eval": accuracy(groups), **halves(groups)})
        _report(run, row, tasks)
        last = stop.is_set() or step + 1 == run.config.loop.steps or _plateaued(run)
        await asyncio.to_thread(_save, run, pipeline, last=last)
        if last:
            break
    run.status.enter("drained" if stop.is_set() else "done")


def _save(run: Run, pipeline: Pipeline, *, last: bool) -> None:
    """Saves a checkpoint if one is due, after the groups of its steps; the engines sample the next step meanwhile."""
    run.rollouts.finish()
    run.checkpoints.maybe_save(pipeline, last=last)


def _plateaued(run: Run) -> bool:
    """Keeps the adapter of the best policy so far; whether the run ends, because it has found no better one since."""
    kept = run.config.checkpoint
    if not kept.keep_best:
        return False
    rows = run.folder.rows()
    run.checkpoints.best = best_of(rows)
    return plateaued(rows, kept.patience)


async def _start(run: Run) -> tuple[Pipeline, Metrics]:
    """Restores the newest checkpoint and publishes the tasks of every step in flight.

    Returns:
        The pipeline, and the accuracy of the base model if the run begins here and evaluates.
    """
    lag = run.config.loop.lag
    restored = run.checkpoints.restore()
    pipeline = (restored or Pipeline.start(lag)).resized(lag)
    run.folder.truncate(pipeline.next_step)
    if restored is not None:
        pipeline = await _compared(run, pipeline)
    LAG_BOUND.labels(run.folder.name).set(lag)
    before: Metrics = {}
    if pipeline.next_step == 0 and run.config.eval_steps:
        run.status.enter("eval")
        before = run.status.row = {"accuracy/eval_before": accuracy(await _evaluated(run, pipeline))}
    PUBLISHED_VERSION.labels(run.folder.name).set(pipeline.newest.policy.version)
    for step in pipeline.steps:
        await _publish_tasks(run, _tasks(run, pipeline, step))
    _follow(run, pipeline)
    return pipeline, before


async def _compared(run: Run, pipeline: Pipeline) -> Pipeline:
    """Compares the restored weights with the newest version; publishes them again if the user changed the model.

    Raises:
        UserError: they differ although the run's model and adapter are the same.
    """
    policy = pipeline.newest.policy
    difference = run.publisher.restored_otherwise(policy)
    if not difference:
        return pipeline
    changed = changed_model(Lines(run.folder.changes).refresh(), pipeline.next_step)
    if not changed or policy == BASE_POLICY:
        raise UserError(
            f"the restored weights give the canary log-prob {difference}: the files of {run.config.model.path} or the "
            f"lora section have changed since. Restore them; {run.folder.config} has the run's values"
        )
    run.status.note(f"{', '.join(changed)} changed the policy, whose version {policy.version} is published again")
    return pipeline.renewed(await run.publisher.publish(policy.version))


def _tasks(run: Run, pipeline: Pipeline, step: int) -> Sequence[PromptTask]:
    pinned = pipeline.of(step)
    return run.feeder.tasks(step, pinned.policy, pinned.teacher)


def _follow(run: Run, pipeline: Pipeline) -> None:
    """Shows the newest policy; from then on groups from outside may be sampled with it."""
    run.status.policy = pipeline.newest.policy
    run.feeder.follow(pipeline)


async def _complete(run: Run, pipeline: Pipeline, stop: asyncio.Event) -> Sequence[PromptTask]:
    """The tasks of the next step, once groups from outside have arrived; none if the run is told to stop before."""
    step, pinned = pipeline.next_step, pipeline.of(pipeline.next_step)
    run.status.step = step
    run.status.enter("rollout")
    return await run.feeder.complete(step, pinned.policy, pinned.teacher, stop)


async def _publish_tasks(run: Run, tasks: Sequence[PromptTask]) -> None:
    run.collector.expect(tasks)
    await run.feeder.publish(tasks)


async def _collect(run: Run, tasks: Sequence[PromptTask], supply: Supply, row: StepRow) -> Groups:
    """Waits for the groups of a step, and for those of the follow-up tasks that the algorithm asks for.

    A follow-up task that the step has had already is not sent again.
    """
    exposed, follow_up = run.collector.exposed_seconds, run.config.algorithm.follow_up
    groups = await run.collector.take(tasks)
    sent = {task.group_id for task in tasks}
    while more := [task for task in follow_up(finished(groups), tasks[0].step, supply) if task.group_id not in sent]:
        sent |= {task.group_id for task in more}
        await _publish_tasks(run, more)
        groups += await run.collector.take(more)
    run.folder.append_failures(failures(groups, tasks[0].step, run.folder))
    row.add({"time/teacher_exposed_seconds": run.collector.exposed_seconds - exposed})
    return groups


def _remembered(run: Run, groups: Groups, step: int) -> Metrics:
    """Records the pass rates of a step for the curriculum; returns the metrics of its sources."""
    problems, done = run.feeder.problems(step), finished(groups)
    run.feeder.history.record(step, problems, done)
    return source_metrics(problems, done)


def _learn(run: Run, groups: Groups, supply: Supply, step: int) -> Metrics:
    """Computes the advantages of a step, updates the policy and begins to write the step's rollouts.

    Returns:
        Metrics of the groups and of the update.

    Raises:
        UserError: every group of the step failed, the verifier judged no response, or training has diverged.
    """
    metrics: Metrics = group_metrics(groups) | versions(groups)
    if not (done := finished(groups)):
        raise UserError(f"every group of step {step} failed, the first because: {first_failure(groups, run.folder)}")
    chosen = run.config.algorithm.select(done, supply)
    adv_BT, learned = run.learner.learn(pack(chosen), step)
    if learned["updates/skipped"]:
        _note_skipped(run, learned, step)
    if warning := run.gap.warning(learned["rollout/logp_gap"], step):
        run.status.note(warning)
    prompts = [group for group in chosen if group.task.origin is None]
    run.rollouts.train(step, prompts, adv_BT)
    return metrics | learned | answer_share(prompts[:ANSWER_GROUPS], run.rollouts.pieces)


def _note_skipped(run: Run, learned: Metrics, step: int) -> None:
    """Tells the user that updates of a step were skipped.

    Raises:
        UserError: several updates in a row were.
    """
    what = f"the gradient of {learned['updates/skipped']:.0f} updates in step {step} was not finite"
    if run.learner.skipped_in_a_row >= MAX_SKIPPED:
        raise diverged(f"{what}, and that of {run.learner.skipped_in_a_row} updates in a row", run.folder.path)
    run.status.note(f"{what}; they were skipped")


async def _publish_policy(run: Run, pipeline: Pipeline) -> Pipeline:
    """Publishes the weights that a step ended with, as the next version, and that version's teacher."""
    policy = await run.publisher.publish(pipeline.next_step + 1)
    teacher = await run.teacher.of(policy, pipeline.newest.teacher)
    PUBLISHED_VERSION.labels(run.folder.name).set(policy.version)
    return pipeline.advanced(policy, teacher)


async def _evaluated(run: Run, pipeline: Pipeline) -> Groups:
    """The groups of the held-out problems, sampled with the newest policy.

    Raises:
        UserError: every evaluation group failed.
    """
    tasks = run.feeder.eval_tasks(pipeline.next_step, pipeline.newest.policy)
    await _publish_tasks(run, tasks)
    groups = await run.collector.take(tasks)
    ended_step = max(0, pipeline.next_step - 1)  # the step whose row has this accuracy
    run.folder.append_failures(failures(groups, ended_step, run.folder))
    if not finished(groups):
        raise UserError(f"every evaluation group failed, the first because: {first_failure(groups, run.folder)}")
    await asyncio.to_thread(run.rollouts.held_out, pipeline.newest.policy.version, finished(groups))
    if failed := len(groups) - len(finished(groups)):
        log.warning("%d of %d evaluation groups failed and are not counted in the accuracy", failed, len(groups))
    return groups


def _report(run: Run, row: StepRow, tasks: Sequence[PromptTask]) -> None:
    """Writes the row of a step to metrics.jsonl and the trackers, and shows it in the status."""
    row.add({"time/publish_to_first_token_seconds": run.publisher.reload_seconds(tasks[0].policy)})
    run.trackers.step(row.ended())
    run.status.row = row.metrics
