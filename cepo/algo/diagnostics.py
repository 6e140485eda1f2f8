"""What token credit did in a step (algorithms 9.3), under the same names for every method."""

from __future__ import annotations

import torch
from torch import Tensor

from cepo.algo.base import Metrics
from cepo.algo.batch import TrainBatch
from cepo.algo.core import Credit, masked_mean

_CREDIT_KEYS = (
    "tokens",
    "delta_mean",
    "delta_std",
    "delta_pos_fraction",
    "delta_neg_fraction",
    "delta_pos_fraction_correct",
    "delta_pos_fraction_wrong",
    "delta_neg_fraction_correct",
    "delta_neg_fraction_wrong",
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
    correct_BT, wrong_BT = mask_BT & correct_B1, mask_BT & ~correct_B1
    sign_BT = torch.sign(credit.adv_BT)
    multiplier_BT = (1.0 - lam) + lam * credit.weight_clipped_BT
    metrics |= {
        "credit/tokens": float(mask_BT.sum()),
        "credit/delta_mean": masked_mean(delta_BT, mask_BT),
        "credit/delta_std": float(delta_BT[mask_BT].std(correction=0)),
        "credit/delta_pos_fraction": masked_mean(delta_BT > 0, mask_BT),
        "credit/delta_neg_fraction": masked_mean(delta_BT < 0, mask_BT),
        "credit/delta_pos_fraction_correct": masked_mean(delta_BT > 0, correct_BT),
        "credit/delta_pos_fraction_wrong": masked_mean(delta_BT > 0, wrong_BT),
        "credit/delta_neg_fraction_correct": masked_mean(delta_BT < 0, correct_BT),
        "credit/delta_neg_fraction_wrong": masked_mean(delta_BT < 0, wrong_BT),
        "credit/delta_mean_correct": masked_mean(delta_BT, correct_BT),
        "credit/delta_mean_wrong": masked_mean(delta_BT, wrong_BT),
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
