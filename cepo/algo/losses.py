"""The clipped surrogate and its aggregation, with denominators that do not depend on the micro-batch split.

Shapes: B sequences, T response tokens (padded); mask_BT is 1 on sampled tokens, including the end of each turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0

Aggregation = Literal[
    "token-mean",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
    "dr-grpo",
]


@dataclass(frozen=True)
class Totals:
    """The denominators of a loss, counted over the whole minibatch and all ranks, never over a micro-batch."""

    tokens: int
    sequences: int
    """Number of sequences with at least one token. No denominator counts empty sequences."""
    max_tokens: int
    """The constant C of some modes: the longest response that sampling allows."""

    @classmethod
    def of(cls, mask_BT: Tensor, max_tokens: int | None = None) -> Totals:
        """The counts of a mask. C defaults to its width."""
        lengths_B = mask_BT.sum(dim=1)
        return cls(int(lengths_B.sum()), int((lengths_B > 0).sum()), max_tokens or max(1, mask_BT.shape[1]))


def aggregate(loss_BT: Tensor, mask_BT: Tensor, aggregation: Aggregation, totals: Totals | None = None) -> Tensor:
    """Reduces per-token losses to a scalar. The sum over micro-batches equals the value of the minibatch.

    With S the sum over a sequence, L its length, N the number of tokens, B that of non-empty sequences and C the
    maximal length: token-mean sum(S)/N (DAPO); seq-mean-token-mean sum(S/L)/B (GRPO); seq-mean-token-sum sum(S)/B;
    seq-mean-token-sum-norm sum(S)/C (verl's Dr.GRPO); dr-grpo sum(S)/(B C) (TRL's Dr.GRPO). An empty mask gives 0
    with a graph.

    Raises:
        ValueError: the aggregation is unknown.
    """
    totals = totals or Totals.of(mask_BT)
    sum_B = torch.where(mask_BT.bool(), loss_BT, 0.0).sum(dim=1)
    match aggregation:
        case "token-mean":
            return sum_B.sum() / max(1, totals.tokens)
        case "seq-mean-token-mean":
            return (sum_B / mask_BT.sum(dim=1).clamp(min=1)).sum() / max(1, totals.sequences)
        case "seq-mean-token-sum":
            return sum_B.sum() / max(1, totals.sequences)
        case "seq-mean-token-sum-norm":
            return sum_B.sum() / totals.max_tokens
        case "dr-grpo":
            return sum_B.sum() / (max(1, totals.sequences) * totals.max_tokens)
    raise ValueError(f"unknown aggregation {aggregation!r}")


def clipped_terms(
    logp_BT: Tensor,
    logp_old_BT: Tensor,
    adv_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """PPO's clipped surrogate per token, to be minimised.

    r = exp(clamp(logp - old, +-20)); u = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)). For A < 0 and a dual
    clip c > 1 it is min(u, -A c). The gradient flows only through the selected branch.
    """
    ratio_BT = importance_ratio(logp_BT, logp_old_BT)
    return clipped_ratio_terms(ratio_BT, adv_BT, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def clipped_ratio_terms(
    ratio_BT: Tensor, adv_BT: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """`clipped_terms` for a given importance ratio."""
    loss_BT = torch.maximum(-adv_BT * ratio_BT, -adv_BT * ratio_BT.clamp(1.0 - clip_low, 1.0 + clip_high))
    if dual_clip is None:
        return loss_BT
    return torch.where(adv_BT < 0, torch.minimum(loss_BT, -adv_BT * dual_clip), loss_BT)


def clipped_surrogate(
    logp_BT: Tensor,
    logp_old_BT: Tensor,
    adv_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    aggregation: Aggregation,
    dual_clip: float | None = None,
) -> Tensor:
    """The policy loss of a minibatch: `clipped_terms`, aggregated to a scalar to minimise.

    Values on padding have no effect. Only logp_BT has a gradient.

    Raises:
        ValueError: the aggregation is unknown.
    """
    adv_BT = torch.where(mask_BT.bool(), adv_BT, 0.0).detach()  # 0 * NaN on padding would be NaN
    loss_BT = clipped_terms(logp_BT, logp_old_BT, adv_BT, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    return aggregate(loss_BT, mask_BT, aggregation)


@torch.no_grad()
def clip_fractions(
    logp_BT: Tensor, logp_old_BT: Tensor, adv_BT: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Whether each token is clipped at the lower bound (A < 0) and at the upper bound (A > 0); two [B, T] booleans."""
    return ratio_clip_fractions(importance_ratio(logp_BT, logp_old_BT), adv_BT, clip_low=clip_low, clip_high=clip_high)


@torch.no_grad()
def ratio_clip_fractions(
    ratio_BT: Tensor, adv_BT: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """`clip_fractions` for a given importance ratio."""
    return (adv_BT < 0) & (ratio_BT < 1.0 - clip_low), (adv_BT > 0) & (ratio_BT > 1.0 + clip_high)


@torch.no_grad()
def dual_clip_fraction(ratio_BT: Tensor, adv_BT: Tensor, *, dual_clip: float) -> Tensor:
    """Whether the dual clip bounds the loss of each token with A < 0; a [B, T] boolean."""
    return (adv_BT < 0) & (ratio_BT > dual_clip)


def importance_ratio(logp_BT: Tensor, logp_old_BT: Tensor) -> Tensor:
    """r = exp(clamp(logp - old, +-20)) of each token. The clamp keeps it finite; beyond it the gradient is 0.

    The old log-probs have no gradient.
    """
    return (logp_BT - logp_old_BT.detach()).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def entropy(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """A rule for `Student.per_token`: the entropy of each token's distribution, in nats."""
    logp_NV = logits_NV.log_softmax(dim=1)
    return -(logp_NV.exp() * logp_NV).sum(dim=1)
