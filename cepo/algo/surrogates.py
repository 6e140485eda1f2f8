"""Alternatives to the clipped surrogate: GSPO, CISPO and SAPO, per token, for `cepo.algo.losses.aggregate`.

Shapes: B sequences, T response tokens (padded); mask_BT is 1 on sampled tokens, including the end of each turn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cepo.algo.losses import LOG_RATIO_BOUND, clipped_ratio_terms, importance_ratio


def sequence_ratio(logp_BT: Tensor, logp_old_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """GSPO's s = exp(mean over the sequence's tokens of logp - old), repeated on each token, [B, T].

    The value at each position has a gradient for all tokens of the sequence. The mean is clamped to +-20.
    """
    log_ratio_B1 = _mean_log_ratio(logp_BT, logp_old_BT, mask_BT)
    return _bounded_exp(log_ratio_B1).expand(mask_BT.shape)


def sequence_token_ratio(logp_BT: Tensor, logp_old_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """GSPO-token's ratio, [B, T]: the value of `sequence_ratio`, with a gradient only for the token's own log-prob."""
    log_ratio_B1 = _mean_log_ratio(logp_BT, logp_old_BT, mask_BT).detach()
    return _bounded_exp(log_ratio_B1 + (logp_BT - logp_BT.detach()))


def gspo_terms(
    logp_BT: Tensor,
    logp_old_BT: Tensor,
    adv_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """GSPO (arXiv:2507.18071): the clipped surrogate of the sequence ratio, to be minimised.

    With "seq-mean-token-mean" and a uniform advantage, it is the paper's mean over sequences of max(-A s, -A clip(s)).
    The mask must contain whole sequences. The paper has no dual clip; EasyR1 keeps that of PPO.
    """
    ratio_BT = sequence_ratio(logp_BT, logp_old_BT, mask_BT)
    return clipped_ratio_terms(ratio_BT, adv_BT, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def gspo_token_terms(
    logp_BT: Tensor,
    logp_old_BT: Tensor,
    adv_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """GSPO-token (arXiv:2507.18071, section 4.3): the value of `gspo_terms`, with a gradient per token.

    This form is for advantages that differ between tokens. With a uniform advantage and a mean over the tokens of a
    sequence, it has the gradient of GSPO.
    """
    ratio_BT = sequence_token_ratio(logp_BT, logp_old_BT, mask_BT)
    return clipped_ratio_terms(ratio_BT, adv_BT, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def cispo_terms(
    logp_BT: Tensor, logp_old_BT: Tensor, adv_BT: Tensor, *, ratio_max: float, ratio_min: float = 0.0
) -> Tensor:
    """CISPO (arXiv:2506.13585): -A sg(clip(r, ratio_min, ratio_max)) logp, to be minimised.

    Only the weight is clipped, so every token keeps its gradient. The bounds apply to the ratio itself; the paper has
    no effective lower bound. The value depends on the size of logp and does not measure progress.
    """
    weight_BT = importance_ratio(logp_BT, logp_old_BT).detach().clamp(ratio_min, ratio_max)
    return -adv_BT * weight_BT * logp_BT


def sapo_terms(logp_BT: Tensor, logp_old_BT: Tensor, adv_BT: Tensor, *, tau_pos: float, tau_neg: float) -> Tensor:
    """SAPO (arXiv:2511.20347): -A (4 / tau) sigmoid(tau (r - 1)), to be minimised: a soft gate instead of a clip.

    tau is tau_pos where A > 0 and tau_neg where A < 0. The gate's slope is 1 at r = 1.
    """
    tau_BT = torch.where(adv_BT > 0, tau_pos, tau_neg)
    gate_BT = torch.sigmoid(tau_BT * (importance_ratio(logp_BT, logp_old_BT) - 1.0)) * 4.0 / tau_BT
    return -adv_BT * gate_BT


def _mean_log_ratio(logp_BT: Tensor, logp_old_BT: Tensor, mask_BT: Tensor) -> Tensor:
    valid_BT = mask_BT.bool()
    sum_B1 = torch.where(valid_BT, logp_BT - logp_old_BT.detach(), 0.0).sum(dim=1, keepdim=True)
    return sum_B1 / valid_BT.sum(dim=1, keepdim=True).clamp(min=1)


def _bounded_exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
