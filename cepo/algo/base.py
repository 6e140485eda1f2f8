"""What an algorithm is: its parameters, the evidence it asks for, and one rule for the advantages.

The trainer is blind to everything else. A batch holds what was sampled and measured; an algorithm turns it into
adv_BT and, with the log-probs under the weights being trained, into a loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from cepo.algo.core import Credit, Scale, group_advantage, masked_mean
from cepo.algo.losses import Aggregation, Totals, aggregate, clip_fractions, clipped_terms
from cepo.contracts import Ask, TeachWhen

Metrics = dict[str, float]
_CREDIT_KEYS = (
    "tokens",
    "delta_mean",
    "delta_std",
    "delta_pos_fraction",
    "delta_neg_fraction",
    "delta_mean_correct",
    "delta_mean_wrong",
    "wrong_direction_fraction",
    "clip_fraction",
    "weight_mean",
    "multiplier_mean",
    "nonfinite_tokens",
)


@dataclass(frozen=True)
class TrainBatch:
    """A step's groups as tensors; B sequences in group order, T the longest response."""

    prompt_ids: Sequence[tuple[int, ...]]
    """Token ids of each sequence's prompt."""
    response_ids: Sequence[tuple[int, ...]]
    mask_BT: Tensor
    """1 on generated tokens, the end of sequence included; 0 on every token of a failed sample."""
    reward_B: Tensor
    """NaN for a failed sample."""
    accuracy_B: Tensor
    group_B: Tensor
    rollout_logp_BT: Tensor
    """As the sampling engine reported them; 0 on padding."""
    measured_B: Tensor
    """Whether every ask was measured for the sequence."""
    evidence: tuple[Tensor, ...] = ()
    """Log-probs [B, T] per ask, in the order of the asks; 0 where not measured."""

    @property
    def size(self) -> int:
        return len(self.response_ids)


@dataclass(frozen=True)
class LossOutput:
    """A scalar to minimise, and sums over tokens that the learner divides by the step's token count."""

    loss: Tensor
    token_sums: Metrics


class Algorithm(BaseModel):
    """GRPO's advantage and the clipped surrogate; a variant overrides what differs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    advantage_scale: Scale = "std"
    advantage_eps: float = Field(default=1e-6, ge=0)
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    clip_high: float = Field(default=0.28, gt=0)
    dual_clip: float | None = Field(default=None, gt=1)
    aggregation: Aggregation = "token-mean"
    importance_cap: float | None = Field(default=None, gt=0)
    """Truncated importance weights min(exp(old - rollout), cap); None: off."""

    @property
    def asks(self) -> tuple[Ask, ...]:
        """The evidence the advantage needs."""
        return ()

    @property
    def teach_when(self) -> TeachWhen:
        """Groups of equal rewards have zero advantage: nothing can be credited there."""
        return TeachWhen.REWARD_SPREAD

    def asks_at(self, step: int) -> tuple[Ask, ...]:
        """The evidence this step needs; none when it could not matter."""
        return self.asks

    def advantages(self, batch: TrainBatch, step: int) -> Tensor:
        """adv_BT, zero on padding."""
        adv_B = group_advantage(batch.reward_B, batch.group_B, eps=self.advantage_eps, scale=self.advantage_scale)
        return adv_B[:, None] * batch.mask_BT

    def diagnostics(self, batch: TrainBatch, step: int) -> Metrics:
        """The `credit/` metrics of this step."""
        return credit_metrics(None, batch, batch.mask_BT, 0.0)

    def loss(
        self, logp_BT: Tensor, logp_old_BT: Tensor, batch: TrainBatch, adv_BT: Tensor, totals: Totals
    ) -> LossOutput:
        """The policy loss of a micro-batch, divided by the totals of its mini-batch."""
        loss_BT = clipped_terms(
            logp_BT, logp_old_BT, adv_BT, clip_low=self.clip_low, clip_high=self.clip_high, dual_clip=self.dual_clip
        )
        if self.importance_cap is not None:
            ratio_BT = (logp_old_BT - batch.rollout_logp_BT).clamp(max=20.0).exp().detach()
            loss_BT = loss_BT * ratio_BT.clamp(max=self.importance_cap)
        low_BT, high_BT = clip_fractions(logp_BT, logp_old_BT, adv_BT, clip_low=self.clip_low, clip_high=self.clip_high)
        mask_BT = batch.mask_BT
        sums = {
            "clip/ppo_low": float((low_BT * mask_BT).sum()),
            "clip/ppo_high": float((high_BT * mask_BT).sum()),
            "kl/old_new": float(((logp_old_BT - logp_BT.detach()) * mask_BT).sum()),
            "entropy/sampled": float((-logp_BT.detach() * mask_BT).sum()),
        }
        return LossOutput(aggregate(loss_BT, mask_BT, self.aggregation, totals), sums)


def credit_metrics(credit: Credit | None, batch: TrainBatch, weighed_BT: Tensor, lam: float) -> Metrics:
    """Diagnostics over the weighed tokens (algorithms 9.3); all 0 when nothing was weighed.

    Args:
        credit: the parts of the reweighting, or None where the method has none.
        weighed_BT: 1 on tokens that have evidence and a non-zero advantage.
    """
    metrics = {"credit/lambda": lam, **{f"credit/{key}": 0.0 for key in _CREDIT_KEYS}}
    if credit is None or not weighed_BT.any():
        return metrics
    delta_BT, mask_BT = credit.delta_BT, weighed_BT.bool()
    correct_B1 = (batch.accuracy_B >= 0.5)[:, None]
    sign_BT = torch.sign(credit.adv_BT)
    multiplier_BT = (1.0 - lam) + lam * credit.weight_clipped_BT
    metrics |= {
        "credit/tokens": float(mask_BT.sum()),
        "credit/delta_mean": masked_mean(delta_BT, mask_BT),
        "credit/delta_std": float(delta_BT[mask_BT].std(correction=0)),
        "credit/delta_pos_fraction": masked_mean(delta_BT > 0, mask_BT),
        "credit/delta_neg_fraction": masked_mean(delta_BT < 0, mask_BT),
        "credit/delta_mean_correct": masked_mean(delta_BT, mask_BT & correct_B1),
        "credit/delta_mean_wrong": masked_mean(delta_BT, mask_BT & ~correct_B1),
        "credit/wrong_direction_fraction": masked_mean(delta_BT * sign_BT < 0, mask_BT),
        "credit/clip_fraction": masked_mean(credit.clipped_BT, mask_BT),
        "credit/weight_mean": masked_mean(credit.weight_clipped_BT, mask_BT),
        "credit/multiplier_mean": masked_mean(multiplier_BT, mask_BT),
    }
    return metrics
