"""CEPO (arXiv:2605.19436): the evidence of the right answer against the evidence of a wrong answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from cepo.algo.base import Advantages, Metrics
from cepo.algo.batch import TrainBatch
from cepo.algo.core import masked_mean
from cepo.algo.methods.evidence import EvidenceRatio, Weighing, in_groups_with
from cepo.messages.groups import Ask, ContextName

Negative = Literal["peer_answer", "peer_full", "peer_prefix", "peer_suffix"]


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
    `feedback_tokens` tokens. peer_answer as in the paper (Table 5)."""
    wrong_hints: int = Field(default=1, ge=1)
    """Number of different rejected answers; the denominator is the mean of the log-probs under each. 1 as in the
    paper."""
    no_negative: Literal["rlsd", "grpo", "skip_group"] = "rlsd"
    """What happens in a group without a rejected answer. rlsd: the plain context is the denominator, as in the paper;
    grpo: weights are 1, as in its code; skip_group: the group's advantages are 0, and it still counts in the
    denominators of the loss."""
    unparsed: Literal["next_rejected", "as_published"] = "next_rejected"
    """How a rejected response without an answer is treated: the next rejected response is taken, or r- is the word
    None, as in the paper's code."""
    exclude_self: bool | None = None
    """Whether a response is never scored under a hint taken from itself. Unset: true, except for r- as an answer, where
    the paper's code does not exclude it."""
    modulate_all_wrong: bool = True
    """Whether groups without a correct response are weighed. true as in the paper's code."""

    @property
    def shown(self) -> tuple[str, ...]:
        return (self.positive, self.negative)

    @property
    def contrast(self) -> tuple[Ask, ...]:
        exclude_self = self.negative != "peer_answer" if self.exclude_self is None else self.exclude_self
        instead = ContextName.PLAIN if self.no_negative == "rlsd" else None
        rejected = [
            self._peer(
                ContextName.REJECTED,
                self.negative,
                exclude_self=exclude_self,
                as_published=self.unparsed == "as_published",
                rank=rank,
                otherwise=None if rank else instead,
            )
            for rank in range(self.wrong_hints)
        ]
        return (self._numerator(exclude_self=self.exclude_self is not False), *rejected)

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

    def _metrics(self, batch: TrainBatch, step: int, weighing: Weighing | None) -> Metrics:
        metrics = super()._metrics(batch, step, weighing)
        metrics |= {"credit/sharper_correct": 0.0, "credit/sharper_wrong": 0.0}
        return metrics if weighing is None else metrics | self._sharpness(batch, weighing)

    def _sharpness(self, batch: TrainBatch, weighing: Weighing) -> Metrics:
        """The share of tokens at which CEPO's weight exceeds RLSD's (arXiv:2605.19436, Proposition 1).

        w_CEPO > w_RLSD if sign(A) (log P_S - log P_-) > 0, with P_S the policy that sampled and P_- the evidence of r-.
        """
        adv_BT, weighed_BT, rejected_BT = weighing.adv_BT, weighing.weighed_BT, weighing.denominator.logp_BT
        substitute_B = batch.evidence[self.contrast[1]].substitute_B
        if substitute_B is not None:
            weighed_BT = weighed_BT & ~substitute_B[:, None]
        sampled_BT = batch.rollout_logp_BT
        return {
            "credit/sharper_correct": masked_mean(sampled_BT > rejected_BT, weighed_BT & (adv_BT > 0)),
            "credit/sharper_wrong": masked_mean(sampled_BT < rejected_BT, weighed_BT & (adv_BT < 0)),
        }
