"""Weights that correct for responses sampled by other log-probs than those of the trainer's policy.

The rollout engine may be some steps behind (`loop.lag`), and its arithmetic differs from the trainer's. Every
correction reads the ratio r = pi_old / pi_rollout of a token, and has the name that TRL or its paper gives it.

Shapes: B sequences, T response tokens (padded).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from cepo.algo.losses import LOG_RATIO_BOUND

Correction = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "icepop", "geometric_mask"]
TWO_SIDED = ("icepop", "geometric_mask")
"""The corrections that have a lower bound."""


@torch.no_grad()
def importance_weights(
    logp_old_BT: Tensor,
    rollout_logp_BT: Tensor,
    mask_BT: Tensor,
    correction: Correction,
    cap: float,
    floor: float = 0.0,
) -> Tensor:
    """The weight of every token's loss, [B, T], without gradient; 0 on padding.

    With r_t = exp(old - rollout) of a token, R the product of a sequence's ratios and g their geometric mean:

        token_truncate     min(r_t, cap)                       truncated importance sampling (TIS)
        token_mask         r_t if r_t <= cap, otherwise 0      masked importance sampling (MIS)
        sequence_truncate  min(R, cap)
        sequence_mask      R if R <= cap, otherwise 0          TRL's default
        icepop             r_t if floor <= r_t <= cap, otherwise 0
        geometric_mask     1 if floor <= g <= cap, otherwise 0

    Log-ratios and their sums are clamped to +-20.

    Raises:
        ValueError: the correction is unknown.
    """
    valid_BT = mask_BT.bool()
    log_ratio_BT = torch.where(valid_BT, logp_old_BT - rollout_logp_BT, 0.0)
    ratio_BT = log_ratio_BT.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    total_B = log_ratio_BT.sum(dim=1, keepdim=True)
    sequence_B1 = total_B.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    match correction:
        case "token_truncate":
            weight_BT = ratio_BT.clamp(max=cap)
        case "token_mask":
            weight_BT = torch.where(ratio_BT <= cap, ratio_BT, 0.0)
        case "sequence_truncate":
            weight_BT = sequence_B1.clamp(max=cap).expand_as(ratio_BT)
        case "sequence_mask":
            weight_BT = torch.where(sequence_B1 <= cap, sequence_B1, 0.0).expand_as(ratio_BT)
        case "icepop":
            weight_BT = torch.where((ratio_BT >= floor) & (ratio_BT <= cap), ratio_BT, 0.0)
        case "geometric_mask":
            mean_B1 = (total_B / valid_BT.sum(dim=1, keepdim=True).clamp(min=1)).exp()
            weight_BT = ((mean_B1 >= floor) & (mean_B1 <= cap)).float().expand_as(ratio_BT)
        case _:
            raise ValueError(f"unknown correction {correction!r}; use one of {', '.join(get_args(Correction))}")
    return torch.where(valid_BT, weight_BT, 0.0)
