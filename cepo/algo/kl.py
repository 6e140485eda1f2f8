"""KL divergence from the reference policy, estimated at the sampled token.

As a loss, its terms times a coefficient are added to the policy's terms before `cepo.algo.losses.aggregate`. As a
reward, they are subtracted from the token rewards (`apply_kl_penalty`).

Shapes: B sequences, T response tokens (padded).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cepo.algo.losses import LOG_RATIO_BOUND

LOW_VAR_BOUND = 10.0

KlForm = Literal["kl", "abs", "mse", "low_var_kl"]


def kl_terms(logp_BT: Tensor, ref_logp_BT: Tensor, form: KlForm) -> Tensor:
    """An estimate of KL(policy || reference) at each sampled token, [B, T].

    With d = logp - ref: "kl" d (k1), unbiased; "abs" |d|; "mse" d^2 / 2 (k2); "low_var_kl" e^-d + d - 1 (k3), never
    negative, with the exponent clamped to +-20 and the term to +-10 (EasyR1, verl).

    Raises:
        ValueError: the form is unknown.
    """
    difference_BT = logp_BT - ref_logp_BT
    match form:
        case "kl":
            return difference_BT
        case "abs":
            return difference_BT.abs()
        case "mse":
            return 0.5 * difference_BT.square()
        case "low_var_kl":
            exponent_BT = (-difference_BT).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
            return (exponent_BT.exp() - exponent_BT - 1.0).clamp(-LOW_VAR_BOUND, LOW_VAR_BOUND)
    raise ValueError(f"unknown KL form {form!r}")


@torch.no_grad()
def apply_kl_penalty(
    token_reward_BT: Tensor, logp_BT: Tensor, ref_logp_BT: Tensor, mask_BT: Tensor, *, coef: float, form: KlForm
) -> Tensor:
    """token_reward_BT - coef KL_BT on valid tokens, 0 on other tokens, without gradient.

    Estimators of one reward per sequence use the sum over its tokens, so a group of equal scores may have different
    rewards.

    Raises:
        ValueError: the form is unknown.
    """
    penalized_BT = token_reward_BT - coef * kl_terms(logp_BT, ref_logp_BT, form)
    return torch.where(mask_BT.bool(), penalized_BT, 0.0)
