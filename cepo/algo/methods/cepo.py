"""CEPO: the evidence of the right answer against that of a wrong one (arXiv:2605.19436)."""

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
    """CEPO: does the right answer favour this token while a wrong one disfavours it?"""

    name: Literal["cepo"] = "cepo"
    negative: Negative = "peer_answer"
    """What r- shows of a rejected rollout."""
    wrong_hints: int = Field(default=1, ge=1)
    """Differing rejected answers that are contrasted with: the mean of their log-probs."""
    no_negative: Literal["rlsd", "grpo", "skip_group"] = "rlsd"
    """Where no rejected answer exists: contrast with the teacher's plain context (the paper), not at all (its code), or
    leave the group without an advantage; it still counts in the denominators."""
    unparsed: Literal["next_rejected", "as_published"] = "next_rejected"
    """A rejected rollout without an answer is passed over, or shown by the word None as in the reference code."""
    exclude_self: bool | None = None
    """Never show a rollout to itself; unless given, that holds for all but a rejected answer, as published."""
    modulate_all_wrong: bool = True
    """Also weigh groups without a correct rollout."""

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
        """Share of tokens at which the contrast is sharper than RLSD's (Proposition 1).

        w_CEPO > w_RLSD where sign(A) (log P_S - log P_-) > 0; P_S is the policy's own, as it sampled.
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
