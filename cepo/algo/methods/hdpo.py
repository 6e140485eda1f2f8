"""HDPO (arXiv:2603.23871): GRPO, plus distillation on the prompts where GRPO has no gradient.

A cliff is a prompt that no response answers correctly. The policy samples it again with the solution in its prompt, and
the student learns the correct ones of these privileged responses under the plain prompt. The paper has no public code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from cepo.algo.base import Advantages, LossOutput, Supply
from cepo.algo.batch import Student, TrainBatch
from cepo.algo.core import masked_mean
from cepo.algo.divergence import topk_jsd
from cepo.algo.losses import Totals, aggregate
from cepo.algo.methods.distillation import compared, masked_sum, reports
from cepo.algo.methods.policy_gradient import Estimator, PolicyGradient
from cepo.algo.teacher import TeacherSource
from cepo.errors import UserError
from cepo.messages.groups import Ask, ContextName, EvidencedGroup, FollowUp, Origin, PromptTask, Stage, TeachWhen, Want
from cepo.messages.hints import with_hint


class Hdpo(PolicyGradient):
    """HDPO (arXiv:2603.23871): GRPO, plus distillation of privileged responses to prompts that every response fails.

        L = L_GRPO + weight (1 / N) sum over the kept tokens of JSD_k(T(. | x, y*) || S(. | x))

    y* is the solution, T the teacher with y* in its prompt, S the student. The kept tokens are those of the correct
    privileged responses, N their number in the minibatch. JSD_k compares the teacher's k likeliest tokens.
    """

    name: Literal["hdpo"] = "hdpo"
    estimator: Estimator = "rloo"
    """How rewards become advantages. rloo (leave-one-out) as in the paper; the others as in GRPO."""
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped above 1 + clip_high. 0.2 as in the paper."""
    positive: Literal["solution", "answer"] = "solution"
    """What the privileged prompt shows: the reference solution, as in the paper, or the reference answer."""
    privileged_samples: int = Field(default=8, ge=1)
    """Number of responses sampled for each privileged prompt. The paper does not state its number."""
    teacher: TeacherSource = TeacherSource()
    """The weights of the teacher; see teacher sources."""
    weight: float = Field(default=0.01, gt=0)
    """Factor of the distillation loss. 0.01 as in the paper, which also uses 0.1."""
    top: int = Field(default=64, ge=1)
    """Number k of the teacher's likeliest tokens that are compared. 64 as in the paper."""
    rest_factor: float = Field(default=0.5, ge=0)
    """Cost of the student's probability outside these tokens, in units of ln 2 nats. 0.5 follows from the divergence;
    the paper's text can also be read as 1."""

    @property
    def teacher_source(self) -> TeacherSource:
        return self.teacher

    @property
    def shows_solution(self) -> bool:
        return self.positive == "solution"

    @property
    def ask(self) -> Ask:
        """The ask for the teacher's distribution under the plain context of a privileged task, whose prompt has the
        hint."""
        return Ask(context=ContextName.PLAIN, want=Want.DISTRIBUTION, top=self.top)

    def follow_up(self, groups: Sequence[EvidencedGroup], step: int, supply: Supply) -> tuple[PromptTask, ...]:
        """One privileged task for every cliff."""
        cliffs = [group.task for group in groups if group.task.origin is None and is_cliff(group)]
        return tuple(self._privileged(task, supply.prompts + task.index) for task in cliffs)

    def advantages(self, batch: TrainBatch, step: int) -> Advantages:
        advantages = super().advantages(batch, step)
        correct_B, shown_B = batch.correct_B, batch.demonstration_B
        judged_B = ~shown_B & batch.reward_B.isfinite()
        groups, solved = batch.group_B[judged_B].unique(), batch.group_B[judged_B & correct_B].unique()
        metrics = {
            "hdpo/cliff_fraction": (len(groups) - len(solved)) / max(1, len(groups)),
            "hdpo/privileged_success": masked_mean(correct_B, shown_B),
            "hdpo/kept_tokens": float(self._kept_BT(batch).sum()),
        }
        return Advantages(advantages.adv_BT, advantages.metrics | metrics)

    def has_gradient_B(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        return super().has_gradient_B(batch, adv_BT) | self._kept_BT(batch).any(dim=1)

    def loss(
        self, student: Student, logp_old_BT: Tensor, batch: TrainBatch, adv_BT: Tensor, minibatch: TrainBatch
    ) -> LossOutput:
        policy = super().loss(student, logp_old_BT, batch, adv_BT, minibatch)
        kept_BT, teacher = self._kept_BT(batch), batch.evidence.get(self.ask)
        if teacher is None or teacher.top_ids_BTk is None or teacher.top_logp_BTk is None or not kept_BT.any():
            return policy
        columns_BTC = student.per_token(self._likeliest, teacher.top_ids_BTk, teacher.top_logp_BTk)
        totals = Totals.of(self._kept_BT(minibatch), minibatch.max_tokens)
        distilled = aggregate(columns_BTC[..., 0], kept_BT, "token-mean", totals)
        sums = {key: masked_sum(value_BT, kept_BT) for key, value_BT in reports(columns_BTC).items()}
        return LossOutput(policy.loss + self.weight * distilled, policy.token_sums, sums, policy.loss_tokens)

    def _likeliest(self, logits_NV: Tensor, target_N: Tensor, ids_Nk: Tensor, teacher_Nk: Tensor) -> Tensor:
        logp_NV = logits_NV.log_softmax(dim=1)
        return compared(
            topk_jsd(logp_NV, ids_Nk, teacher_Nk, rest_factor=self.rest_factor), logp_NV, ids_Nk, teacher_Nk
        )

    def _kept_BT(self, batch: TrainBatch) -> Tensor:
        """The mask of the tokens of correct demonstrations."""
        return batch.mask_BT * (batch.demonstration_B & batch.correct_B)[:, None]

    def _privileged(self, task: PromptTask, index: int) -> PromptTask:
        shown = task.reference_solution if self.positive == "solution" else task.reference_answer
        if not shown:
            raise UserError(
                'algorithm.positive="solution" and the problem has none; name the column in data.solution, '
                'or set algorithm.positive = "answer"'
            )
        changes = {
            "index": index,
            "messages": with_hint(task.messages, task.hint, shown, task.placement),
            "samples": self.privileged_samples,
            "asks": (self.ask,),
            "teach_when": TeachWhen.ALWAYS,
            "route": (Stage.ROLLOUT, Stage.VERIFY, Stage.TEACH),
            "origin": Origin(kind=FollowUp.DEMONSTRATION, index=task.index),
        }
        return PromptTask(**dict(task) | changes)


def is_cliff(group: EvidencedGroup) -> bool:
    """Whether no response of a group is correct, regardless of rewards. A group without verdicts is no cliff."""
    judged = [verdict for verdict in group.scored.verdicts if not verdict.failed]
    return bool(judged) and not any(verdict.correct for verdict in judged)
