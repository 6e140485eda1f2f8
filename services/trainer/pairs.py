"""Offline pairs: groups of a given chosen and rejected response. They skip sampling and go to the teacher directly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import (
    Completion,
    FinishReason,
    Outcome,
    PolicyProof,
    PolicyRef,
    PromptTask,
    Purpose,
    RolloutGroup,
    ScoredGroup,
    Stage,
    Verdict,
)
from cepo.prompts.renderer import Renderer
from cepo.service.bus import stream_of
from services.trainer.feeder import Feeder

CHOSEN = Verdict(outcome=Outcome.CORRECT, reward=1.0, accuracy=1.0, reason="chosen")
REJECTED = Verdict(outcome=Outcome.WRONG, reward=0.0, accuracy=0.0, reason="rejected")


@dataclass(frozen=True)
class PairFeeder(Feeder):
    """Publishes training pairs to the teacher; held-out problems are sampled and graded as in every run."""

    renderer: Renderer

    def tasks(self, step: int, policy: PolicyRef, teacher: PolicyRef) -> tuple[PromptTask, ...]:
        changes = {"samples": 2, "route": (Stage.TEACH,)}
        return tuple(task.model_copy(update=changes) for task in super().tasks(step, policy, teacher))

    async def publish(self, tasks: Sequence[PromptTask]) -> None:
        """Publishes the groups of pairs on the teacher's stream, and evaluation tasks on the rollout stream."""
        await super().publish([task for task in tasks if task.purpose is Purpose.EVAL])
        pairs = [self.group(task) for task in tasks if task.purpose is Purpose.TRAIN]
        if pairs:
            await self.bus.publish(stream_of(Stage.TEACH), pairs)

    def group(self, task: PromptTask) -> ScoredGroup:
        """The pair of a task as a scored group: the chosen response, then the rejected response."""
        problem = self.problems(task.step)[task.index]
        completions = tuple(
            Completion(
                token_ids=Int32Array.of(self.renderer.response_ids(text)),
                logps=Float32Array(),
                text=text,
                finish_reason=FinishReason.STOP,
            )
            for text in (problem.answer, problem.rejected)
        )
        proof = PolicyProof(
            policy=task.policy,
            bound_modules=0,
            canary_logp=0.0,
            tokenizer_sha256=self.renderer.sha256,
            engine="none: the responses were given",
        )
        prompt_ids = Int32Array.of(self.renderer.prompt_ids(task.messages, task.images))
        rollout = RolloutGroup(task=task, prompt_token_ids=prompt_ids, completions=completions, proof=proof)
        return ScoredGroup(rollout=rollout, verdicts=(CHOSEN, REJECTED))
