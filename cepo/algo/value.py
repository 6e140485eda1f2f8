"""PPO's value loss, per token, for `cepo.algo.losses.aggregate`. Shapes: B sequences, T response tokens (padded)."""

from __future__ import annotations

import torch
from torch import Tensor


def value_terms(value_BT: Tensor, value_old_BT: Tensor, return_BT: Tensor, *, clip_range: float) -> Tensor:
    """The clipped value loss of OpenAI's `baselines.ppo2`, as in verl, to be minimised.

    max((V - return)^2, (clip(V, V_old - clip_range, V_old + clip_range) - return)^2) / 2: moving V further than the
    range does not reduce the loss.
    """
    error_BT, clipped_error_BT = _errors(value_BT, value_old_BT, return_BT, clip_range)
    return 0.5 * torch.maximum(error_BT, clipped_error_BT)


@torch.no_grad()
def value_clipped(value_BT: Tensor, value_old_BT: Tensor, return_BT: Tensor, *, clip_range: float) -> Tensor:
    """Whether the clipped error is the larger one, so that the token has no gradient; a [B, T] boolean."""
    error_BT, clipped_error_BT = _errors(value_BT, value_old_BT, return_BT, clip_range)
    return clipped_error_BT > error_BT


def _errors(value_BT: Tensor, value_old_BT: Tensor, return_BT: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    clipped_BT = torch.clamp(value_BT, value_old_BT - clip_range, value_old_BT + clip_range)
    return (value_BT - return_BT).square(), (clipped_BT - return_BT).square()
