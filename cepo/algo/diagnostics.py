"""Metrics of token credit and of the update in a step, with the same keys for all methods."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cepo.algo.base import Metrics
from cepo.algo.batch import TrainBatch
from cepo.algo.core import Credit, masked_mean
from cepo.algo.losses import importance_ratio
from cepo.messages.vocabulary import DEAD_BAND

DELTA_EDGES = (-8.0, -4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Edges of the bins of delta's histogram, in nats. A delta on an edge is in the bin above it."""
DELTA_QUANTILES = (5, 25, 50, 75, 95)
"""The percentiles of delta."""
RATIO_QUANTILES = (1, 50, 99)
TENTHS = 10
SURE = 0.9
"""A token that was sampled with a larger probability was no fork (as in SPO, arXiv:2505.23564)."""
RULED_OUT = 0.05
"""r+ rules out a token of a smaller probability."""


def credit_metrics(
    credit: Credit | None,
    batch: TrainBatch,
    weighed_BT: Tensor,
    lam: float,
    dead_band: float = DEAD_BAND,
    numerator_BT: Tensor | None = None,
) -> Metrics:
    """Metrics over the weighed tokens; all 0 if no token was weighed.

    Args:
        credit: token credit and its parts; None for a method without token credit.
        weighed_BT: 1 on tokens with evidence and a non-zero advantage.
        dead_band: a delta within it, in nats, counts as 0.
        numerator_BT: the log-probs under r+.
    """
    if credit is None:
        nothing_BT = torch.zeros_like(batch.mask_BT)
        credit = Credit(nothing_BT, nothing_BT, nothing_BT, nothing_BT, nothing_BT.bool())
        weighed_BT = nothing_BT
    mask_BT = weighed_BT.bool()
    return {
        "credit/lambda": lam,
        **delta_metrics(credit, batch.correct_B, mask_BT, dead_band),
        **weight_metrics(credit, mask_BT, lam),
        **position_metrics(credit.delta_BT, batch.mask_BT, mask_BT, dead_band),
        **surprise_metrics(credit.delta_BT, batch.rollout_logp_BT, mask_BT, dead_band),
        **blame_metrics(credit, numerator_BT, mask_BT & ~batch.correct_B[:, None], dead_band),
    }


def delta_metrics(credit: Credit, correct_B: Tensor, mask_BT: Tensor, dead_band: float = DEAD_BAND) -> Metrics:
    """Statistics of delta over all tokens, by the correctness of the response and by the sign of the advantage."""
    delta_BT, sign_BT = credit.delta_BT, torch.sign(credit.adv_BT)
    correct_BT, wrong_BT = mask_BT & correct_B[:, None], mask_BT & ~correct_B[:, None]
    raised_BT, lowered_BT = mask_BT & (sign_BT > 0), mask_BT & (sign_BT < 0)
    delta_N = delta_BT[mask_BT]
    positive_BT, negative_BT = delta_BT > dead_band, delta_BT < -dead_band
    against_BT = delta_BT * sign_BT < -dead_band
    bin_N = torch.bucketize(delta_N, torch.tensor(DELTA_EDGES), right=True)
    share_of_bin = torch.bincount(bin_N, minlength=len(DELTA_EDGES) + 1) / max(1, len(delta_N))
    return {
        "credit/delta_mean": masked_mean(delta_BT, mask_BT),
        "credit/delta_std": _deviation(delta_N),
        "credit/delta_pos_fraction": masked_mean(positive_BT, mask_BT),
        "credit/delta_neg_fraction": masked_mean(negative_BT, mask_BT),
        "credit/delta_zero_fraction": masked_mean(~(positive_BT | negative_BT), mask_BT),
        "credit/delta_pos_fraction_correct": masked_mean(positive_BT, correct_BT),
        "credit/delta_pos_fraction_wrong": masked_mean(positive_BT, wrong_BT),
        "credit/delta_neg_fraction_correct": masked_mean(negative_BT, correct_BT),
        "credit/delta_neg_fraction_wrong": masked_mean(negative_BT, wrong_BT),
        "credit/delta_mean_correct": masked_mean(delta_BT, correct_BT),
        "credit/delta_mean_wrong": masked_mean(delta_BT, wrong_BT),
        "credit/delta_mean_raised": masked_mean(delta_BT, raised_BT),
        "credit/delta_mean_lowered": masked_mean(delta_BT, lowered_BT),
        "credit/delta_std_raised": _deviation(delta_BT[raised_BT]),
        "credit/delta_std_lowered": _deviation(delta_BT[lowered_BT]),
        "credit/wrong_direction_fraction": masked_mean(against_BT, mask_BT),
        "credit/wrong_direction_fraction_raised": masked_mean(against_BT, raised_BT),
        "credit/wrong_direction_fraction_lowered": masked_mean(against_BT, lowered_BT),
        "credit/nonfinite_tokens": float((credit.broken_BT & mask_BT).sum()),
        **{f"credit/delta_{key}": value for key, value in quantiles(delta_N, DELTA_QUANTILES).items()},
        **{f"credit/delta_histogram_{at:02d}": float(share) for at, share in enumerate(share_of_bin)},
    }


def weight_metrics(credit: Credit, mask_BT: Tensor, lam: float) -> Metrics:
    """Statistics of the weights and their clipping, and of the advantages."""
    multiplier_BT = (1.0 - lam) + lam * credit.weight_clipped_BT
    return {
        "credit/tokens": float(mask_BT.sum()),
        "credit/clip_fraction": masked_mean(credit.clipped_BT, mask_BT),
        "credit/clip_low_fraction": masked_mean(credit.weight_BT < credit.weight_clipped_BT, mask_BT),
        "credit/clip_high_fraction": masked_mean(credit.weight_BT > credit.weight_clipped_BT, mask_BT),
        "credit/weight_mean": masked_mean(credit.weight_clipped_BT, mask_BT),
        "credit/weight_mean_unclipped": masked_mean(credit.weight_BT, mask_BT),
        "credit/multiplier_mean": masked_mean(multiplier_BT, mask_BT),
        "credit/sequences_fraction": float(mask_BT.any(dim=1).float().mean()),
        "credit/advantage_before": masked_mean((credit.adv_BT / multiplier_BT).abs(), mask_BT),
        "credit/advantage_after": masked_mean(credit.adv_BT.abs(), mask_BT),
    }


def position_metrics(delta_BT: Tensor, valid_BT: Tensor, mask_BT: Tensor, dead_band: float) -> Metrics:
    """Mean |delta| in each tenth of the responses, 00 the first; a delta within the dead band counts as 0.

    Args:
        valid_BT: 1 on the sampled tokens of the responses, whose number is a response's length.
        mask_BT: the weighed tokens.
    """
    size_BT = _beyond(delta_BT, dead_band)
    length_B1 = valid_BT.sum(dim=1, keepdim=True).clamp(min=1)
    tenth_BT = (valid_BT.long().cumsum(dim=1) - 1) * TENTHS // length_B1.long()
    return {f"credit/size_tenth_{at:02d}": masked_mean(size_BT, mask_BT & (tenth_BT == at)) for at in range(TENTHS)}


def surprise_metrics(delta_BT: Tensor, logp_BT: Tensor, mask_BT: Tensor, dead_band: float) -> Metrics:
    """Mean |delta| where the policy was sure of the sampled token (p > 0.9) and where it was not (a fork).

    The probability of the sampled token stands in for the entropy of its distribution, which would cost a pass.

    Args:
        logp_BT: log-probs of the sampled tokens under the policy that sampled.
    """
    size_BT, sure_BT = _beyond(delta_BT, dead_band), logp_BT > math.log(SURE)
    return {
        "credit/size_sure": masked_mean(size_BT, mask_BT & sure_BT),
        "credit/size_fork": masked_mean(size_BT, mask_BT & ~sure_BT),
        "credit/fork_fraction": masked_mean(~sure_BT, mask_BT),
    }


def blame_metrics(credit: Credit, numerator_BT: Tensor | None, wrong_BT: Tensor, dead_band: float) -> Metrics:
    """How often the first token that r+ rules out is blamed, over the wrong responses that have such a token.

    r+ rules a token out if its probability under r+ is below 5 %. The token is blamed if its weight raises the size of
    a negative advantage: delta is below the dead band and the advantage is negative.
    """
    if numerator_BT is None:
        return {"credit/ruled_out_blamed": 0.0}
    ruled_BT = wrong_BT & (numerator_BT < math.log(RULED_OUT))
    first_BT = ruled_BT & (ruled_BT.cumsum(dim=1) == 1)
    return {"credit/ruled_out_blamed": masked_mean((credit.delta_BT < -dead_band) & (credit.adv_BT < 0), first_BT)}


def _beyond(delta_BT: Tensor, dead_band: float) -> Tensor:
    size_BT = delta_BT.abs()
    return torch.where(size_BT > dead_band, size_BT, 0.0)


def engine_metrics(logp_old_BT: Tensor, rollout_BT: Tensor, sampled_BT: Tensor) -> Metrics:
    """The difference between the log-probs of the trainer and of the rollout engine, over the sampled tokens."""
    ratio_N = importance_ratio(logp_old_BT, rollout_BT)[sampled_BT.bool()]
    return {
        "rollout/logp_gap": masked_mean((logp_old_BT - rollout_BT).abs(), sampled_BT),
        **{f"rollout/ratio_{key}": value for key, value in quantiles(ratio_N, RATIO_QUANTILES).items()},
    }


def quantiles(value_N: Tensor, percents: Sequence[int]) -> Metrics:
    """Percentiles with linear interpolation, by keys such as `p05`; 0 without values."""
    values = dict.fromkeys((f"p{percent:02d}" for percent in percents), 0.0)
    if not value_N.numel():
        return values
    ordered_N = value_N.sort().values  # torch.quantile accepts at most 2^24 values
    at_Q = torch.tensor(percents, dtype=torch.float64) / 100 * (len(ordered_N) - 1)
    low_Q, high_Q = ordered_N[at_Q.floor().long()], ordered_N[at_Q.ceil().long()]
    return dict(zip(values, low_Q.lerp(high_Q, at_Q.frac().to(low_Q)).tolist(), strict=True))


def _deviation(value_N: Tensor) -> float:
    """The biased standard deviation; 0 without values."""
    return float(value_N.std(correction=0)) if value_N.numel() else 0.0
