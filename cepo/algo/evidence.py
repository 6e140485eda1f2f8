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

from cepo.algo.base import Metrics
from cepo.algo.batch import TrainBatch
from cepo.algo.core import Credit, credit
from cepo.algo.diagnostics import credit_metrics
from cepo.algo.policy_gradient import PolicyGradient
from cepo.algo.schedules import linear_decay
from cepo.contracts import Ask, ContextName


class EvidenceRatio(PolicyGradient):
    """A_t = A [(1 - lam) + lam clip(exp(sign(A) (log P_num - log P_den)), 1 - eps_w, 1 + eps_w)]."""

    lam: float = Field(default=0.5, ge=0, le=1)
    """Share of the evidence at step 0."""
    decay_steps: int = Field(default=25, ge=1)
    """The share falls linearly to 0 at this step."""
    eps_w: float = Field(default=0.5, gt=0, lt=1)

    @property
    def pair(self) -> tuple[Ask, Ask]:
        """The numerator's and the denominator's evidence."""
        raise NotImplementedError

    @property
    def asks(self) -> tuple[Ask, ...]:
        return (*super().asks, *self.pair)

    def lam_at(self, step: int) -> float:
        """Share of the evidence at a step, which counts from 0."""
        return linear_decay(self.lam, self.decay_steps, step)

    def asks_at(self, step: int) -> tuple[Ask, ...]:
        return self.asks if self.lam_at(step) > 0 else super().asks

    def advantages(self, batch: TrainBatch, step: int) -> Tensor:
        parts = self._credit(batch, step)
        return super().advantages(batch, step) if parts is None else parts.adv_BT

    def diagnostics(self, batch: TrainBatch, step: int) -> Metrics:
        lam, parts = self.lam_at(step), self._credit(batch, step)
        if parts is None:
            return credit_metrics(None, batch, batch.mask_BT, lam)
        numerator, denominator = (batch.evidence[ask] for ask in self.pair)
        weighed_BT = (numerator.applicable_B & denominator.applicable_B)[:, None] & (parts.adv_BT != 0)
        broken_BT = weighed_BT & ~(numerator.logp_BT - denominator.logp_BT).isfinite()
        return credit_metrics(parts, batch, weighed_BT, lam) | {"credit/nonfinite_tokens": float(broken_BT.sum())}

    def _credit(self, batch: TrainBatch, step: int) -> Credit | None:
        """The parts of the reweighting; None where the step measured nothing."""
        if any(ask not in batch.evidence for ask in self.pair):
            return None
        numerator, denominator = (batch.evidence[ask] for ask in self.pair)
        both_B1 = (numerator.applicable_B & denominator.applicable_B)[:, None]
        zero_BT = torch.zeros_like(batch.mask_BT)  # half a ratio is none
        numerator_BT = torch.where(both_B1, numerator.logp_BT, zero_BT)
        denominator_BT = torch.where(both_B1, denominator.logp_BT, zero_BT)
        return credit(super().advantages(batch, step), numerator_BT, denominator_BT, self.lam_at(step), self.eps_w)


class Rlsd(EvidenceRatio):
    """RLSD: does knowing the answer favour this token?"""

    name: Literal["rlsd"] = "rlsd"
    decay_steps: int = Field(default=50, ge=1)
    eps_w: float = Field(default=0.2, gt=0, lt=1)

    @property
    def pair(self) -> tuple[Ask, Ask]:
        return Ask(context=ContextName.ANSWER), Ask(context=ContextName.PLAIN)


class Cepo(EvidenceRatio):
    """CEPO: does the right answer favour this token while a wrong one disfavours it?"""

    name: Literal["cepo"] = "cepo"
    no_negative: Literal["rlsd", "grpo"] = "rlsd"
    """Where no rejected answer exists: contrast with the plain context (the paper), or not at all (its code)."""
    exclude_self: bool = False
    """Never contrast a rollout with its own answer."""

    @property
    def pair(self) -> tuple[Ask, Ask]:
        instead = ContextName.PLAIN if self.no_negative == "rlsd" else ContextName.ANSWER
        rejected = Ask(context=ContextName.REJECTED, otherwise=instead, exclude_self=self.exclude_self)
        return Ask(context=ContextName.ANSWER), rejected
