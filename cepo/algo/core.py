"""Group advantages and token credit (arXiv:2605.19436, Eqs 1, 4, 5 and 7).

Shapes: B sequences, T response tokens (padded). Weights, ratios and advantages are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

EXPONENT_BOUND = 20.0
"""The bound of delta, which keeps exp finite. Weights beyond e^20 are clipped in any case."""

Scale = Literal["std", "batch-std", "none"]


def peer_groups(reward_B: Tensor, group_B: Tensor) -> Iterator[Tensor]:
    """Yields a mask [B] for each group with at least two finite rewards: its samples with a finite reward.

    Groups are found by id, never by position. A sample whose reward is not finite has failed, and is no peer.
    """
    usable_B = torch.isfinite(reward_B)
    for group in torch.unique(group_B):
        member_B = (group_B == group) & usable_B
        if int(member_B.sum()) >= 2:
            yield member_B


def group_advantage(
    reward_B: Tensor, group_B: Tensor, *, eps: float = 1e-6, scale: Scale = "std", correction: int = 1
) -> Tensor:
    """GRPO's group-relative advantage (Eq. 1): (R - mean of the group) / (std of the group + eps).

    Groups are found by id, never by position. The advantages of a group are exactly 0 if its rewards are equal or if it
    has one sample. A sample whose reward is not finite has failed: it gets 0 and is left out of the statistics.

    Args:
        reward_B: one scalar reward per sequence.
        group_B: integer id of each sequence's group.
        eps: added to the standard deviation.
        scale: "std" divides by the group's deviation, "batch-std" by that of all rewards (TRL's `scale_rewards`),
            "none" only subtracts the mean (Dr.GRPO).
        correction: 1 for the unbiased deviation, 0 for the biased one.

    Returns:
        adv_B, float32.

    Raises:
        ValueError: the scale is unknown.
    """
    if scale not in get_args(Scale):
        raise ValueError(f"unknown scale {scale!r}")
    reward_B = torch.as_tensor(reward_B, dtype=torch.float32)
    group_B = torch.as_tensor(group_B, device=reward_B.device)
    adv_B = torch.zeros_like(reward_B)
    for member_B in peer_groups(reward_B, group_B):
        reward_G = reward_B[member_B]
        if reward_G.max() == reward_G.min():
            continue
        centred_G = reward_G - reward_G.mean()
        if scale == "none":
            adv_B[member_B] = centred_G
            continue
        spread = reward_G if scale == "std" else reward_B[reward_B.isfinite()]
        adv_B[member_B] = centred_G / (spread.std(correction=correction) + eps)
    return adv_B


@dataclass(frozen=True)
class Credit:
    """Token credit and its parts. Every tensor is [B, T]."""

    delta_BT: Tensor
    """log P(y_t | numerator context) - log P(y_t | denominator context); 0 if undefined."""
    weight_BT: Tensor
    """w_t = exp(sign(A) delta)."""
    weight_clipped_BT: Tensor
    """w_t clipped to [1 - eps_w, 1 + eps_w]."""
    adv_BT: Tensor
    """A [(1 - lam) + lam clip(w)]."""
    broken_BT: Tensor
    """Whether the difference of the log-probs is not finite."""

    @property
    def clipped_BT(self) -> Tensor:
        """Whether the weight was clipped."""
        return self.weight_BT != self.weight_clipped_BT


@torch.no_grad()
def credit(
    adv_BT: Tensor,
    logp_num_BT: Tensor,
    logp_den_BT: Tensor,
    lam: float,
    eps_w: float,
    where_BT: Tensor | None = None,
    sign_BT: Tensor | None = None,
) -> Credit:
    """Token credit from the log-probs under two contexts (Eq. 4 for RLSD, Eqs 5 and 7 for CEPO), with its parts.

    No gradient flows through the log-probs. A NaN delta counts as 0; an infinite delta is clipped.

    Args:
        where_BT: the tokens to weigh; the others have delta 0 and keep their advantage. None: all tokens.
        sign_BT: the sign that multiplies delta; default: the sign of each token's advantage.

    Raises:
        ValueError: lam outside [0, 1] or eps_w outside (0, 1), which could flip the sign of the advantage.
    """
    if not 0.0 <= lam <= 1.0:
        raise ValueError(f"lam must be within [0, 1], got {lam}")
    if not 0.0 < eps_w < 1.0:
        raise ValueError(f"eps_w must be within (0, 1), got {eps_w}")
    raw_BT = logp_num_BT.float() - logp_den_BT.float()
    if where_BT is not None:
        raw_BT = torch.where(where_BT, raw_BT, 0.0)
    delta_BT = torch.nan_to_num(raw_BT, nan=0.0, posinf=EXPONENT_BOUND, neginf=-EXPONENT_BOUND)
    sign_BT = torch.sign(adv_BT) if sign_BT is None else sign_BT
    exponent_BT = (sign_BT * delta_BT).clamp(-EXPONENT_BOUND, EXPONENT_BOUND)
    weight_BT = exponent_BT.exp()
    clipped_BT = weight_BT.clamp(1.0 - eps_w, 1.0 + eps_w)
    credited_BT = adv_BT * ((1.0 - lam) + lam * clipped_BT)
    return Credit(delta_BT, weight_BT, clipped_BT, credited_BT, ~raw_BT.isfinite())


def reweight(adv_BT: Tensor, logp_num_BT: Tensor, logp_den_BT: Tensor, lam: float, eps_w: float) -> Tensor:
    """The credited advantage A [(1 - lam) + lam clip(exp(sign(A) delta), 1 - eps_w, 1 + eps_w)], [B, T].

    The numerator is the context with the answer. The denominator is the plain context in RLSD, and the context with a
    rejected answer in CEPO; the methods do not differ otherwise.

    Raises:
        ValueError: lam outside [0, 1] or eps_w outside (0, 1).
    """
    return credit(adv_BT, logp_num_BT, logp_den_BT, lam, eps_w).adv_BT


def masked_mean(value_BT: Tensor, mask_BT: Tensor) -> float:
    """Mean over the positions at which the mask is set; 0 if there are none."""
    chosen = value_BT[mask_BT.bool()]
    return float(chosen.float().mean()) if chosen.numel() else 0.0
