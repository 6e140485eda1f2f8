"""RLSD and CEPO: GRPO's advantage, weighed at every token by the ratio of two evidences.

They differ in which two evidences are divided, and in nothing else:

    RLSD  answer / plain       (arXiv:2604.03128, Eqs 13-15; arXiv:2605.19436, Eq. 4)
    CEPO  answer / rejected    (arXiv:2605.19436, Eqs 5 and 7)
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cepo.algo.base import Algorithm, Metrics, TrainBatch, credit_metrics
from cepo.algo.core import Credit, credit
from cepo.algo.schedules import linear_decay
from cepo.contracts import Ask, ContextName


class EvidenceRatio(Algorithm):
    """A_t = A [(1 - lam) + lam clip(exp(sign(A) (log P_num - log P_den)), 1 - eps_w, 1 + eps_w)]."""

    lam: float = Field(default=0.5, ge=0, le=1)
    """Share of the evidence at step 0."""
    decay_steps: int = Field(default=25, ge=1)
    """The share falls linearly to 0 at this step."""
    eps_w: float = Field(default=0.5, gt=0, lt=1)

    def lam_at(self, step: int) -> float:
        """Share of the evidence at a step, which counts from 0."""
        return linear_decay(self.lam, self.decay_steps, step)

    def asks_at(self, step: int) -> tuple[Ask, ...]:
        return self.asks if self.lam_at(step) > 0 else ()

    def advantages(self, batch: TrainBatch, step: int) -> Tensor:
        if not batch.evidence:
            return super().advantages(batch, step)
        return self._credit(batch, step).adv_BT

    def diagnostics(self, batch: TrainBatch, step: int) -> Metrics:
        if not batch.evidence:
            return credit_metrics(None, batch, batch.mask_BT, self.lam_at(step))
        parts = self._credit(batch, step)
        weighed_BT = batch.measured_B[:, None] & (parts.adv_BT != 0)
        numerator_BT, denominator_BT = batch.evidence
        broken_BT = weighed_BT & ~(numerator_BT - denominator_BT).isfinite()
        return credit_metrics(parts, batch, weighed_BT, self.lam_at(step)) | {
            "credit/nonfinite_tokens": float(broken_BT.sum())
        }

    def _credit(self, batch: TrainBatch, step: int) -> Credit:
        numerator_BT, denominator_BT = batch.evidence
        denominator_BT = torch.where(batch.measured_B[:, None], denominator_BT, numerator_BT)  # half a ratio is none
        adv_BT = super().advantages(batch, step)
        return credit(adv_BT, numerator_BT, denominator_BT, self.lam_at(step), self.eps_w)


class Rlsd(EvidenceRatio):
    """RLSD: does knowing the answer favour this token?"""

    name: Literal["rlsd"] = "rlsd"
    decay_steps: int = Field(default=50, ge=1)
    eps_w: float = Field(default=0.2, gt=0, lt=1)

    @property
    def asks(self) -> tuple[Ask, ...]:
        return (Ask(context=ContextName.ANSWER), Ask(context=ContextName.PLAIN))


class Cepo(EvidenceRatio):
    """CEPO: does the right answer favour this token while a wrong one disfavours it?"""

    name: Literal["cepo"] = "cepo"
    no_negative: Literal["rlsd", "grpo"] = "rlsd"
    """Where no rejected answer exists: contrast with the plain context (the paper), or not at all (its code)."""
    exclude_self: bool = False
    """Never contrast a rollout with its own answer."""

    @property
    def asks(self) -> tuple[Ask, ...]:
        instead = ContextName.PLAIN if self.no_negative == "rlsd" else ContextName.ANSWER
        rejected = Ask(context=ContextName.REJECTED, otherwise=instead, exclude_self=self.exclude_self)
        return (Ask(context=ContextName.ANSWER), rejected)
