"""Feeds a run with groups that arrive from outside, in place of prompts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from cepo.data.problems import Problem
from cepo.messages.groups import PolicyRef, PromptTask, Purpose
from cepo.service.bus import stream_of
from services.trainer.feeder import Feeder, StepSupply
from services.trainer.outside.inbox import Inbox
from services.trainer.pipeline import Pinned, Pipeline

POLL_SECONDS = 0.5
"""How often a step that waits for groups looks whether the run is to stop."""


@dataclass
class Arrivals:
    """The groups that have arrived, and the policies that senders may sample with."""

    inbox: Inbox
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    """Held while a group is taken; notified when one was."""
    pipeline: Pipeline | None = None
    """The steps in flight with their policies; None until the run has started."""


@dataclass(frozen=True)
class OutsideFeeder(Feeder):
    """The feeder of a run with `data.source = "groups"`; held-out problems are sampled and graded as in every run."""

    arrivals: Arrivals

    def tasks(self, step: int, policy: PolicyRef, teacher: PolicyRef) -> tuple[PromptTask, ...]:
        """The tasks of the groups of a step that have arrived; each names the policy that it was sampled with."""
        return tuple(group.task for group in self.arrivals.inbox.of_step(step))

    def task_for(self, problem: Problem, step: int, index: int, pinned: Pinned) -> PromptTask:
        """The task of a problem, as a run with a data set would make it."""
        return self._task(problem, Purpose.TRAIN, step, index, pinned.policy, pinned.teacher)

    def problems(self, step: int) -> list[Problem]:
        return []

    def supply(self, tasks: Sequence[PromptTask]) -> StepSupply:
        """No additional prompts: what arrives goes to the next step."""
        return StepSupply(len(tasks), iter(()))

    def follow(self, pipeline: Pipeline) -> None:
        self.arrivals.pipeline = pipeline

    async def complete(
        self, step: int, policy: PolicyRef, teacher: PolicyRef, stop: asyncio.Event
    ) -> tuple[PromptTask, ...]:
        changed = self.arrivals.changed
        async with changed:
            while self.arrivals.inbox.next_place[0] <= step:
                if stop.is_set():
                    return ()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), POLL_SECONDS)
        return self.tasks(step, policy, teacher)

    async def publish(self, tasks: Sequence[PromptTask]) -> None:
        """Publishes the groups of training tasks on the stream of their first stage; evaluation tasks are sampled."""
        await super().publish([task for task in tasks if task.purpose is Purpose.EVAL])
        training = {task.group_id for task in tasks if task.purpose is Purpose.TRAIN}
        for step in dict.fromkeys(task.step for task in tasks):
            for group in self.arrivals.inbox.of_step(step):
                if group.task.group_id in training:
                    await self.bus.publish(stream_of(group.task.route[0]), [group])
