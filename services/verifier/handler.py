"""Turns a sampled group into a scored one; the stage loop and the gRPC servicer both call it."""

from __future__ import annotations

from cepo.messages.groups import FinishReason, RolloutGroup, ScoredGroup
from services.verifier.played import in_environment
from services.verifier.pool import GraderPool
from services.verifier.rewards import check_allowed, rewarded
from services.verifier.scorers import StepScorers
from services.verifier.verdicts import Item


class Verifier:
    """Scores groups with a pool of graders and, if a task names one, a scorer of reasoning steps."""

    def __init__(self, pool: GraderPool, scorers: StepScorers | None = None) -> None:
        self._pool = pool
        self._scorers = scorers or StepScorers(())

    async def verify(self, group: RolloutGroup) -> ScoredGroup:
        """Gives every completion a verdict with its reward.

        Raises:
            UserError: the task's reference holds no answer or none of its kind, the kind is unknown, or the reward
                names a function or a scorer that this process was not started with.
        """
        task = group.task
        check_allowed(task.reward, self._pool)
        self._scorers.check_allowed(task.reward)
        question = task.messages[-1].content
        items = [
            Item(c.text, task.reference_answer, task.answer_kind, c.finish_reason is FinishReason.LENGTH, question)
            for c in group.completions
        ]
        graded = zip(group.completions, await self._pool.grade(items), strict=True)
        verdicts = await rewarded(group, [in_environment(task, each, verdict) for each, verdict in graded], self._pool)
        return ScoredGroup(rollout=group, verdicts=await self._scorers.scored(group, verdicts))
