"""RLSD: the evidence of the right answer against none (arXiv:2604.03128)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from cepo.algo.base import LossOutput, Metrics
from cepo.algo.batch import Measured, Student, TrainBatch
from cepo.algo.core import Credit
from cepo.algo.diagnostics import credit_metrics
from cepo.algo.evidence import EvidenceRatio
from cepo.contracts import Ask, ContextName, Weights


class Rlsd(EvidenceRatio):
    """RLSD: does knowing the answer favour this token?"""

    name: Literal["rlsd"] = "rlsd"
    decay_steps: int = Field(default=50, ge=1)
    eps_w: float = Field(default=0.2, gt=0, lt=1)
    student_logp: Literal["old", "current"] = "old"
    """The plain evidence: of the policy that sampled, or of the policy as it is being updated (RLSD's code)."""
    negative_only: bool = False
    """Weigh only the tokens of a negative advantage."""

    @property
    def contrast(self) -> tuple[Ask, ...]:
        plain = Ask(context=ContextName.PLAIN, weights=Weights.POLICY)
        return (self._numerator(), plain) if self.student_logp == "old" else (self._numerator(),)

    def advantages(self, batch: TrainBatch, step: int) -> Tensor:
        """Without the weights where `loss` puts them on."""
        return super().advantages(batch, step) if self.student_logp == "old" else self.base_advantages(batch)

    def diagnostics(self, batch: TrainBatch, step: int) -> Metrics:
        if self.student_logp == "old":
            return super().diagnostics(batch, step)
        return credit_metrics(None, batch, batch.mask_BT, self.lam_at(step))  # the loss reports the rest

    def loss(
        self, student: Student, logp_old_BT: Tensor, batch: TrainBatch, adv_BT: Tensor, whole: TrainBatch
    ) -> LossOutput:
        found = self._measured(batch)
        if self.student_logp == "old" or found is None:
            return super().loss(student, logp_old_BT, batch, adv_BT, whole)
        parts = self._weigh(adv_BT, found[0].logp_BT, student.logp_BT.detach(), batch, batch.step)
        output = super().loss(student, logp_old_BT, batch, parts.adv_BT, whole)
        return LossOutput(output.loss, output.token_sums | self._sums(parts, batch))

    def _ratio(self, found: Sequence[Measured]) -> tuple[Measured, Measured]:
        return found[0], found[-1]  # one and the same where the student is measured in the loss

    def _weighed_BT(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        weighed_BT = super()._weighed_BT(batch, adv_BT)
        return weighed_BT & (adv_BT < 0) if self.negative_only else weighed_BT

    def _sums(self, parts: Credit, batch: TrainBatch) -> Metrics:
        """Credit metrics that are means over trained tokens, as sums."""
        lam, mask_BT = self.lam_at(batch.step), batch.mask_BT
        per_token = {
            "delta_mean": parts.delta_BT,
            "delta_pos_fraction": parts.delta_BT > 0,
            "delta_neg_fraction": parts.delta_BT < 0,
            "wrong_direction_fraction": parts.delta_BT * parts.adv_BT < 0,
            "clip_fraction": parts.clipped_BT,
            "clip_low_fraction": parts.weight_BT < parts.weight_clipped_BT,
            "clip_high_fraction": parts.weight_BT > parts.weight_clipped_BT,
            "weight_mean": parts.weight_clipped_BT,
            "multiplier_mean": (1.0 - lam) + lam * parts.weight_clipped_BT,
        }
        return {f"credit/{key}": float((value_BT * mask_BT).sum()) for key, value_BT in per_token.items()}
