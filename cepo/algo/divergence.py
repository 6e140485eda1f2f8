"""Divergences between a student's and a teacher's next-token distributions, one value per token.

All have the form f(logp_NV, teacher_ids_Nk, teacher_logp_Nk) -> loss_N, so that the trainer can evaluate any of them on
chunks of the student's log-softmax. The ids are the support: the teacher's top-k (OPSD github.com/siyan-zhao/OPSD,
HDPO arXiv:2603.23871), the student's top-k (SDPO arXiv:2601.20802), the sampled token
(k = 1), or the whole vocabulary (k = V). Only logp_NV has a gradient.

Shapes: N tokens (flattened over sequences), V vocabulary, k support. Everything is computed in float32.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from cepo.algo.core import EXPONENT_BOUND

LOG_ZERO = -1e4
"""Replaces -inf: its exp is exactly 0, and differences with it are finite."""
FULL_MASS = -1e-7
"""The largest log mass of a support, so that the mass of the tail is never 0."""

Remainder = Literal["tail", "renormalize", "ignore"]
"""How the mass outside the support is treated: as one more outcome in both distributions; by renormalising both on the
support; or not at all, in which case the sum is no divergence and may be negative."""


def generalized_jsd(
    logp_NV: Tensor,
    teacher_ids_Nk: Tensor,
    teacher_logp_Nk: Tensor,
    *,
    beta: float,
    remainder: Remainder = "tail",
) -> Tensor:
    """J = beta KL(T || M) + (1 - beta) KL(S || M) with M = beta T + (1 - beta) S, the generalised JSD.

    beta = 0 returns KL(T || S) and beta = 1 returns KL(S || T), instead of the limits of J, which are 0. At beta = 1/2,
    J is symmetric and at most ln 2.

    Returns:
        loss_N, in nats.

    Raises:
        ValueError: beta is outside [0, 1], or the remainder is unknown.
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta must be within [0, 1], got {beta}")
    student_Nk = _closed(_gather(logp_NV, teacher_ids_Nk), remainder)
    teacher_Nk = _closed(_floored(teacher_logp_Nk.detach()), remainder)
    if beta == 0.0:
        return _kl(teacher_Nk, student_Nk)
    if beta == 1.0:
        return _kl(student_Nk, teacher_Nk)
    mixture_Nk = torch.logaddexp(teacher_Nk + math.log(beta), student_Nk + math.log1p(-beta))
    return beta * _kl(teacher_Nk, mixture_Nk) + (1.0 - beta) * _kl(student_Nk, mixture_Nk)


def topk_jsd(logp_NV: Tensor, teacher_ids_Nk: Tensor, teacher_logp_Nk: Tensor, *, rest_factor: float = 0.5) -> Tensor:
    """HDPO's JSD_k: only the teacher is renormalised on its top-k.

    The teacher has no mass outside the support, so the student's mass P_rest there contributes 1/2 P_rest ln 2.
    `rest_factor` scales this term: the derivation gives 1/2, while the text can be read as 1.

    Returns:
        loss_N, in nats.
    """
    student_Nk = _gather(logp_NV, teacher_ids_Nk)
    teacher_Nk = _floored(teacher_logp_Nk.detach()).log_softmax(dim=-1)
    mixture_Nk = torch.logaddexp(teacher_Nk, student_Nk) - math.log(2.0)
    rest_N = -torch.expm1(student_Nk.logsumexp(dim=-1).clamp(max=0.0))
    return 0.5 * (_kl(teacher_Nk, mixture_Nk) + _kl(student_Nk, mixture_Nk)) + rest_factor * math.log(2.0) * rest_N


def sampled_token(logp_NV: Tensor, teacher_ids_N1: Tensor, teacher_logp_N1: Tensor) -> Tensor:
    """The policy-gradient form of KL(S || T) at the sampled token, sg(log S - log T) log S, of OPSD and SDPO.

    The ids are the sampled tokens. The difference is clamped to +-20; it counts as 0 if the teacher is NaN.

    Returns:
        loss_N, whose gradient is that of the divergence, but whose value is not.
    """
    student_N1 = logp_NV.float().gather(-1, teacher_ids_N1)
    difference_N1 = (student_N1 - teacher_logp_N1.float()).detach().nan_to_num(nan=0.0)
    return (difference_N1.clamp(-EXPONENT_BOUND, EXPONENT_BOUND) * student_N1).squeeze(-1)


@torch.no_grad()
def importance_weight(logp_N: Tensor, logp_old_N: Tensor, *, cap: float) -> Tensor:
    """SDPO's weight of each token's divergence: min(exp(clamp(logp - old, +-20)), cap). Detached, any shape."""
    log_ratio_N = (logp_N.float() - logp_old_N.float()).clamp(-EXPONENT_BOUND, EXPONENT_BOUND)
    return log_ratio_N.exp().clamp(max=cap)


def _gather(logp_NV: Tensor, ids_Nk: Tensor) -> Tensor:
    return _floored(logp_NV.gather(-1, ids_Nk))


def _floored(logp_Nk: Tensor) -> Tensor:
    return logp_Nk.float().clamp(min=LOG_ZERO)


def _closed(logp_Nk: Tensor, remainder: Remainder) -> Tensor:
    """The distribution on the support, after the treatment of the mass outside it."""
    match remainder:
        case "tail":
            mass_N1 = logp_Nk.logsumexp(dim=-1, keepdim=True).clamp(max=FULL_MASS)
            return torch.cat([logp_Nk, torch.log(-torch.expm1(mass_N1))], dim=-1)
        case "renormalize":
            return logp_Nk.log_softmax(dim=-1)
        case "ignore":
            return logp_Nk
    raise ValueError(f"unknown remainder {remainder!r}")


def _kl(logp_Nk: Tensor, logq_Nk: Tensor) -> Tensor:
    """KL(p || q) = sum of p (log p - log q)."""
    return (logp_Nk.exp() * (logp_Nk - logq_Nk)).sum(dim=-1)
