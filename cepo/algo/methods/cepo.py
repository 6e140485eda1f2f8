"""CEPO (arXiv:2605.19436): the evidence of the right answer against the evidence of a wrong answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cepo.algo.base import Advantages, Metrics
from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.algo.core import masked_mean
from cepo.algo.methods.evidence import EvidenceRatio, Weighing, in_groups_with, mean_of, mixture_of
from cepo.messages.groups import Ask, ContextName, Pick, Weights

Negative = Literal["peer_answer", "own_answer", "peer_full", "peer_prefix", "peer_suffix"]
STUDENT = Ask(context=ContextName.PLAIN, weights=Weights.POLICY)
"""The plain context under the policy that sampled: P_S in the paper."""


class Cepo(EvidenceRatio):
    """CEPO (arXiv:2605.19436, Eqs 5 and 7): credits tokens that the right answer favours and a wrong one does not.

    An evidence ratio with

        delta_t = log P(y_t | x, r+, y_<t) - log P(y_t | x, r-, y_<t)

    where r+ is the right answer, r- the answer of a rejected response of the same group, and P the teacher: the policy
    itself, unless `teacher` names other weights.
    """

    name: Literal["cepo"] = "cepo"
    negative: Negative = "peer_answer"
    """What the hint r- shows of a rejected response of the group: its answer, the whole response, or its first or last
    `feedback_tokens` tokens. peer_answer as in the paper (Table 5). own_answer: a wrong response is shown its own
    answer, and a right one that of the lowest reward; not in the paper."""
    wrong_hints: int = Field(default=1, ge=1)
    """Number of rejected responses that are shown, each in a context of its own; answers that are shown all differ. 1
    as in the paper."""
    combine: Literal["mean_logp", "mixture"] = "mean_logp"
    """How several wrong hints make one denominator. mean_logp: the mean of the log-probs under each; mixture: the log
    of the mean of the probabilities, as in RLCSD (arXiv:2606.11709)."""
    no_negative: Literal["rlsd", "rlsd_teacher", "grpo", "skip_group"] = "rlsd"
    """What happens in a group without a rejected answer. rlsd: the denominator is the plain context under the policy
    that sampled, as in the paper (Algorithm 1); rlsd_teacher: the plain context under the teacher's weights, which
    differs if `teacher` is not the actor; grpo: weights are 1, as in the paper's code; skip_group: the group's
    advantages are 0, and it still counts in the denominators of the loss."""
    unparsed: Literal["next_rejected", "as_published"] = "next_rejected"
    """How a rejected response without an answer is treated: the next rejected response is taken, or r- is the word
    None, as in the paper's code."""
    exclude_self: bool | None = None
    """Whether a response is never scored under a hint taken from itself. Unset: true, except for r- as an answer, where
    the paper's code does not exclude it."""
    modulate_all_wrong: bool = True
    """Whether groups without a correct response are weighed. true as in the paper's code."""

    @model_validator(mode="after")
    def _wrong_hints_fit(self) -> Self:
        if self.wrong_hints == 1:
            self.refuse_idle(("combine",), "with wrong_hints=1, a single denominator")
        if self.negative == "own_answer":
            self.refuse_idle(
                ("pick", "exclude_self", "wrong_hints"), "with negative='own_answer', which names the response"
            )
        return self

    @property
    def shown(self) -> tuple[str, ...]:
        return (self.positive, self.negative)

    @property
    def _falls_back_to_student(self) -> bool:
        """Whether the denominator without r- has other weights than the teacher's, and so an ask of its own."""
        return self.no_negative == "rlsd" and self.teacher.source != "actor"

    @property
    def contrast(self) -> tuple[Ask, ...]:
        instead = ContextName.PLAIN if self.no_negative.startswith("rlsd") else None
        fallback = (STUDENT,) if self._falls_back_to_student else ()
        rejected = [self._rejected(rank, None if rank or fallback else instead) for rank in range(self.wrong_hints)]
        return (self._numerator(exclude_self=self.exclude_self is not False), *rejected, *fallback)

    def _rejected(self, rank: int, otherwise: ContextName | None) -> Ask:
        """The ask under the rank-th r-, or under the context that stands in for it."""
        published = {"as_published": self.unparsed == "as_published", "rank": rank, "otherwise": otherwise}
        if self.negative == "own_answer":
            return self._peer(ContextName.REJECTED, "peer_answer", **published).model_copy(update={"pick": Pick.OWN})
        exclude_self = self.negative != "peer_answer" if self.exclude_self is None else self.exclude_self
        return self._peer(ContextName.REJECTED, self.negative, exclude_self=exclude_self, **published)

    def _ratio(self, evidence: Sequence[EvidenceTensors]) -> tuple[EvidenceTensors, EvidenceTensors]:
        numerator, rejected = evidence[0], evidence[1 : 1 + self.wrong_hints]
        denominator = mixture_of(rejected) if self.combine == "mixture" else mean_of(rejected)
        if not self._falls_back_to_student:
            return numerator, replace(denominator, substitute_B=rejected[0].substitute_B)
        student, has_rejected_B = evidence[-1], denominator.applicable_B
        logp_BT = torch.where(has_rejected_B[:, None], denominator.logp_BT, student.logp_BT)
        return numerator, EvidenceTensors(logp_BT, has_rejected_B | student.applicable_B, substitute_B=~has_rejected_B)

    def advantages(self, batch: TrainBatch, step: int) -> Advantages:
        advantages, evidence = super().advantages(batch, step), self._evidence(batch)
        if self.no_negative != "skip_group" or evidence is None:
            return advantages
        contrasted_B = in_groups_with(evidence[1].applicable_B, batch.group_B)
        return replace(advantages, adv_BT=advantages.adv_BT * contrasted_B[:, None])

    def _may_weigh_BT(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        if self.modulate_all_wrong:
            return super()._may_weigh_BT(batch, adv_BT)
        return in_groups_with(batch.correct_B, batch.group_B)[:, None] & batch.mask_BT.bool()

    def diagnostics(self, batch: TrainBatch, adv_BT: Tensor, logp_BT: Tensor, step: int) -> Metrics:
        """Sharpness by the trainer's own log-probs, because those of the rollout engine differ by its arithmetic."""
        weighing = self._weighing(batch, adv_BT, step)
        return {} if weighing is None else self._sharpness(weighing, logp_BT)

    def _metrics(self, batch: TrainBatch, step: int, weighing: Weighing | None) -> Metrics:
        metrics = super()._metrics(batch, step, weighing)
        metrics |= {"credit/sharper_correct": 0.0, "credit/sharper_wrong": 0.0}
        return metrics if weighing is None else metrics | self._sharpness(weighing, batch.rollout_logp_BT)

    def _sharpness(self, weighing: Weighing, student_BT: Tensor) -> Metrics:
        """The share of tokens at which CEPO's weight exceeds RLSD's (arXiv:2605.19436, Proposition 1).

        w_CEPO > w_RLSD if sign(A) (log P_S - log P_-) > 0, with P_S the policy that sampled and P_- the evidence of r-.

        Args:
            student_BT: log P_S.
        """
        adv_BT, weighed_BT = weighing.adv_BT, weighing.weighed_BT
        if weighing.denominator.substitute_B is not None:
            weighed_BT = weighed_BT & ~weighing.denominator.substitute_B[:, None]
        gap_BT = student_BT - weighing.denominator.logp_BT
        return {
            "credit/sharper_correct": masked_mean(gap_BT > self.dead_band, weighed_BT & (adv_BT > 0)),
            "credit/sharper_wrong": masked_mean(gap_BT < -self.dead_band, weighed_BT & (adv_BT < 0)),
        }
