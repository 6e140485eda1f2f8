"""CEPO: the evidence of the right answer against that of a wrong one (arXiv:2605.19436)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from cepo.algo.base import Metrics
from cepo.algo.batch import Measured, TrainBatch
from cepo.algo.core import masked_mean
from cepo.algo.methods.evidence import EvidenceRatio, in_groups_with
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

    def advantages(self, batch: TrainBatch, step: int) -> Tensor:
        adv_BT = super().advantages(batch, step)
        found = self._measured(batch)
        if self.no_negative != "skip_group" or found is None:
            return adv_BT
        return adv_BT * in_groups_with(found[1].applicable_B, batch.group_B)[:, None]

    def diagnostics(self, batch: TrainBatch, step: int) -> Metrics:
        found, metrics = self._measured(batch), super().diagnostics(batch, step)
        metrics |= {"credit/sharper_correct": 0.0, "credit/sharper_wrong": 0.0}
        return metrics if found is None else metrics | self._sharpness(batch, step, found)

    def _weighed_BT(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        weighed_BT = super()._weighed_BT(batch, adv_BT)
        if self.modulate_all_wrong:
            return weighed_BT
        return weighed_BT & in_groups_with(batch.accuracy_B >= 0.5, batch.group_B)[:, None]

    def _sharpness(self, batch: TrainBatch, step: int, found: Sequence[Measured]) -> Metrics:
        """Share of tokens at which the contrast is sharper than RLSD's (Proposition 1).

        w_CEPO > w_RLSD where sign(A) (log P_S - log P_-) > 0; P_S is the policy's own, as it sampled.
        """
        denominator, adv_BT = self._ratio(found)[1], self.base_advantages(batch)
        weighed_BT = self._weighed_BT(batch, adv_BT)
        if found[1].substitute_B is not None:
            weighed_BT = weighed_BT & ~found[1].substitute_B[:, None]
        below_BT = batch.rollout_logp_BT > denominator.logp_BT
        return {
            "credit/sharper_correct": masked_mean(below_BT, weighed_BT & (adv_BT > 0)),
            "credit/sharper_wrong": masked_mean(batch.rollout_logp_BT < denominator.logp_BT, weighed_BT & (adv_BT < 0)),
        }
