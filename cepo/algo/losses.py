"""The clipped surrogate and its aggregation, with denominators that do not depend on the micro-batch split.

Shapes: B sequences, T response tokens (padded); mask_BT is 1 on generated tokens, the end of sequence included.
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
    """What a loss is divided by, counted over the whole mini-batch and every rank, never over a micro-batch."""

    tokens: int
    sequences: int
    """Sequences with at least one token; empty ones stay out of every denominator."""
    max_tokens: int
    """The constant C of the norm modes: the longest response sampling allows."""

    @classmethod
    def of(cls, mask_BT: Tensor, max_tokens: int | None = None) -> Totals:
        """Counts a mask; C defaults to its width."""
        lengths_B = mask_BT.sum(dim=1)
        return cls(int(lengths_B.sum()), int((lengths_B > 0).sum()), max_tokens or max(1, mask_BT.shape[1]))


def aggregate(loss_BT: Tensor, mask_BT: Tensor, aggregation: Aggregation, totals: Totals | None = None) -> Tensor:
    """One scalar from per-token losses; the sum over micro-batches equals the value of the whole.

    With S_i the sum over a sequence, L_i its length, N all tokens, B the non-empty sequences and C the maximum
    length: token-mean sum(S)/N (DAPO); seq-mean-token-mean sum(S/L)/B (GRPO); seq-mean-token-sum sum(S)/B;
    seq-mean-token-sum-norm sum(S)/C (verl's Dr.GRPO); dr-grpo sum(S)/(B C) (TRL's Dr.GRPO). An empty mask gives 0
    with a graph.

    Raises:
        ValueError: the aggregation has no such name.
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

    r = exp(clamp(logp - old, +-20)); u = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)); for A < 0 and a dual
    clip c > 1, min(u, -A c). The gradient flows through the selected branch alone.
    """
    ratio_BT = importance_ratio(logp_BT, logp_old_BT)
    return clipped_ratio_terms(ratio_BT, adv_BT, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def clipped_ratio_terms(
    ratio_BT: Tensor, adv_BT: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """`clipped_terms` of an importance ratio, whichever way it was made."""
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
    """The policy loss of a whole mini-batch: `clipped_terms`, aggregated. A scalar to minimise.

    What stands on padding does not matter, and the gradient reaches logp_BT alone.

    Raises:
        ValueError: the aggregation has no such name.
    """
    adv_BT = torch.where(mask_BT.bool(), adv_BT, 0.0).detach()  # 0 times a padding that is no number is none either
    loss_BT = clipped_terms(logp_BT, logp_old_BT, adv_BT, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    return aggregate(loss_BT, mask_BT, aggregation)


@torch.no_grad()
def clip_fractions(
    logp_BT: Tensor, logp_old_BT: Tensor, adv_BT: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Where the surrogate is cut at the lower bound (A < 0) and at the upper bound (A > 0); two [B, T] booleans."""
    return ratio_clip_fractions(importance_ratio(logp_BT, logp_old_BT), adv_BT, clip_low=clip_low, clip_high=clip_high)


@torch.no_grad()
def ratio_clip_fractions(
    ratio_BT: Tensor, adv_BT: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """`clip_fractions` of an importance ratio, whichever way it was made."""
    return (adv_BT < 0) & (ratio_BT < 1.0 - clip_low), (adv_BT > 0) & (ratio_BT > 1.0 + clip_high)


@torch.no_grad()
def dual_clip_fraction(ratio_BT: Tensor, adv_BT: Tensor, *, dual_clip: float) -> Tensor:
    """Where the dual clip bounds the loss of a token with A < 0; a [B, T] boolean."""
    return (adv_BT < 0) & (ratio_BT > dual_clip)


def importance_ratio(logp_BT: Tensor, logp_old_BT: Tensor) -> Tensor:
    """r = exp(clamp(logp - old, +-20)) of each token; the bound keeps it finite, and beyond it there is no gradient.

    The old log-probs carry none.
    """
    return (logp_BT - logp_old_BT.detach()).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
