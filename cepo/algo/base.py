"""What an algorithm is: its parameters, the evidence it asks for, and one rule for the advantages or the loss.

The trainer is blind to everything else. A batch holds what was sampled and measured; an algorithm turns it into
adv_BT and, with the policy being trained, into a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from cepo.algo.batch import Student, TrainBatch
from cepo.algo.core import Credit, Scale, group_advantage, masked_mean
from cepo.algo.losses import Aggregation, Totals, aggregate, clip_fractions, clipped_terms
from cepo.algo.teacher import TeacherSource
from cepo.contracts import Ask, EvidencedGroup, PromptTask, TeachWhen

Metrics = dict[str, float]
Draw = Callable[[int], tuple[PromptTask, ...]]
"""draw(n): tasks for the next n prompts that this step has not sampled yet."""
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
    "clip_low_fraction",
    "clip_high_fraction",
    "weight_mean",
    "multiplier_mean",
    "sequences_fraction",
    "advantage_before",
    "advantage_after",
    "nonfinite_tokens",
)


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

    @property
    def teacher_source(self) -> TeacherSource:
        """Whose weights the teacher has."""
        return TeacherSource()

    def asks_at(self, step: int) -> tuple[Ask, ...]:
        """The evidence this step needs; none when it could not matter."""
        return self.asks

    def follow_up(self, groups: Sequence[EvidencedGroup], step: int, draw: Draw) -> tuple[PromptTask, ...]:
        """Tasks wanted after seeing a step's groups, follow-ups that came back included; none ends the step.

        A follow-up names its group in `origin`; tasks from `draw` are prompts like the first.
        """
        return ()

    def select(self, groups: Sequence[EvidencedGroup], step: int) -> Sequence[EvidencedGroup]:
        """The groups to train on."""
        return groups

    def advantages(self, batch: TrainBatch, step: int) -> Tensor:
        """adv_BT, zero on padding."""
        adv_B = group_advantage(batch.reward_B, batch.group_B, eps=self.advantage_eps, scale=self.advantage_scale)
        return adv_B[:, None] * batch.mask_BT

    def diagnostics(self, batch: TrainBatch, step: int) -> Metrics:
        """The `credit/` metrics of this step."""
        return credit_metrics(None, batch, batch.mask_BT, 0.0)

    def learns_B(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        """Which sequences have a gradient at all; the others count in denominators and skip the model."""
        return (adv_BT != 0).any(dim=1)

    def loss(
        self, student: Student, logp_old_BT: Tensor, batch: TrainBatch, adv_BT: Tensor, whole: TrainBatch
    ) -> LossOutput:
        """The loss of a micro-batch; `whole` is its mini-batch, whose counts are the denominators."""
        logp_BT, totals = student.logp_BT, Totals.of(whole.mask_BT, whole.max_tokens)
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
    """Diagnostics over the weighed tokens; all 0 when nothing was weighed.

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
        "credit/clip_low_fraction": masked_mean(credit.weight_BT < credit.weight_clipped_BT, mask_BT),
        "credit/clip_high_fraction": masked_mean(credit.weight_BT > credit.weight_clipped_BT, mask_BT),
        "credit/weight_mean": masked_mean(credit.weight_clipped_BT, mask_BT),
        "credit/multiplier_mean": masked_mean(multiplier_BT, mask_BT),
        "credit/sequences_fraction": float(mask_BT.any(dim=1).float().mean()),
        "credit/advantage_before": masked_mean((credit.adv_BT / multiplier_BT).abs(), mask_BT),
        "credit/advantage_after": masked_mean(credit.adv_BT.abs(), mask_BT),
        "credit/nonfinite_tokens": float((credit.broken_BT & mask_BT).sum()),
    }
    return metrics
