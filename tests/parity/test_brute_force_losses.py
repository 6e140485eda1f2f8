"""Losses and their gradients against plain loops over the equations, on ragged batches in shuffled order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.kl import apply_kl_penalty, kl_terms
from cepo.algo.losses import Totals, aggregate
from cepo.algo.surrogates import cispo_terms, gspo_terms, gspo_token_terms, sapo_terms
from cepo.algo.value import value_clipped, value_terms
from tests.parity.support import AGGREGATIONS, Sample, loop_sum, loop_token_weights, random_sample

SEEDS = range(6)
LOW, HIGH, DUAL = 0.2, 0.28, 3.0


def modulated(sample: Sample) -> Tensor:
    """Returns advantages that differ from token to token and are 0 on some sequences and on padding."""
    random = torch.Generator().manual_seed(1)
    adv_B1 = torch.where(torch.rand(13, 1, generator=random) < 0.15, 0.0, torch.randn(13, 1, generator=random))
    return adv_B1 * (0.5 + torch.rand(sample.logp_BT.shape, generator=random)) * sample.batch.mask_BT


def bound(exponent: float) -> float:
    return min(max(exponent, -20.0), 20.0)


def clipped(ratio: float, advantage: float, dual: float | None) -> tuple[float, float]:
    """Returns PPO's term and its derivative with respect to the log-ratio."""
    objective = min(ratio * advantage, min(max(ratio, 1 - LOW), 1 + HIGH) * advantage)
    free = ratio <= 1 + HIGH if advantage > 0 else ratio >= 1 - LOW
    if dual is not None and advantage < 0 and dual * advantage > objective:
        objective, free = dual * advantage, False
    return -objective, -advantage * ratio if free else 0.0


Tokens = Sequence[tuple[float, float, float]]
"""(log-prob, old log-prob, advantage) of each valid token of one sequence."""
Terms = tuple[list[float], list[list[float]]]
"""The losses of a sequence's T tokens, and their [T, T] derivatives: losses are rows, log-probs are columns."""


def diagonal(slopes: list[float]) -> list[list[float]]:
    return [[slope if i == j else 0.0 for j in range(len(slopes))] for i, slope in enumerate(slopes)]


def loop_gspo(tokens: Tokens, dual: float | None, *, per_token: bool) -> Terms:
    mean = math.fsum(logp - old for logp, old, _ in tokens) / len(tokens)
    terms = [clipped(math.exp(bound(mean)), advantage, dual) for *_, advantage in tokens]
    slopes = [slope if abs(mean) <= 20 else 0.0 for _, slope in terms]
    shared = [[slope / len(tokens)] * len(tokens) for slope in slopes]
    return [loss for loss, _ in terms], diagonal(slopes) if per_token else shared


def loop_cispo(tokens: Tokens) -> Terms:
    weights = [-a * min(max(math.exp(bound(logp - old)), 0.5), 2.0) for logp, old, a in tokens]
    return [w * logp for w, (logp, *_) in zip(weights, tokens, strict=True)], diagonal(weights)


def loop_sapo(tokens: Tokens) -> Terms:
    losses, slopes = [], []
    for logp, old, advantage in tokens:
        tau, ratio = (1.0 if advantage > 0 else 1.05), math.exp(bound(logp - old))
        gate = 1 / (1 + math.exp(-min(tau * (ratio - 1), 700)))
        losses.append(-advantage * 4 / tau * gate)
        slopes.append(-advantage * 4 * gate * (1 - gate) * ratio if abs(logp - old) <= 20 else 0.0)
    return losses, diagonal(slopes)


CLIP: dict[str, Any] = {"clip_low": LOW, "clip_high": HIGH}
LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[[Tokens], Terms]]] = {
    "gspo": (lambda p, o, a, m: gspo_terms(p, o, a, m, **CLIP), lambda t: loop_gspo(t, None, per_token=False)),
    "gspo_with_dual_clip": (
        lambda p, o, a, m: gspo_terms(p, o, a, m, **CLIP, dual_clip=DUAL),
        lambda t: loop_gspo(t, DUAL, per_token=False),
    ),
    "gspo_token": (
        lambda p, o, a, m: gspo_token_terms(p, o, a, m, **CLIP, dual_clip=DUAL),
        lambda t: loop_gspo(t, DUAL, per_token=True),
    ),
    "cispo": (lambda p, o, a, _: cispo_terms(p, o, a, ratio_min=0.5, ratio_max=2.0), loop_cispo),
    "sapo": (lambda p, o, a, _: sapo_terms(p, o, a, tau_pos=1.0, tau_neg=1.05), loop_sapo),
}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", SEEDS)
def test_loss_and_gradient_are_the_equation_written_out(seed: int, name: str, aggregation: Any) -> None:
    sample, (terms, loop) = random_sample(seed), LOSSES[name]
    mask_BT, adv_BT = sample.batch.mask_BT, modulated(sample)
    totals = Totals.of(mask_BT, 32)
    weights = loop_token_weights(
        mask_BT.tolist(), aggregation, tokens=totals.tokens, sequences=totals.sequences, max_tokens=32
    )
    losses, gradients = torch.zeros_like(mask_BT).tolist(), torch.zeros_like(mask_BT).tolist()
    for row, length in enumerate(int(n) for n in mask_BT.sum(dim=1)):
        columns = (sample.logp_BT[row, :length], sample.logp_old_BT[row, :length], adv_BT[row, :length])
        row_losses, slopes = (
            loop(list(zip(*(column.tolist() for column in columns), strict=True))) if length else ([], [])
        )
        losses[row][:length] = row_losses
        gradients[row][:length] = [
            math.fsum(weights[row][i] * slopes[i][j] for i in range(length)) for j in range(length)
        ]

    logp_BT = sample.logp_BT.clone().requires_grad_()
    loss = aggregate(terms(logp_BT, sample.logp_old_BT, adv_BT, mask_BT), mask_BT, aggregation, totals)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(loop_sum(weights, losses), rel=1e-4, abs=1e-6)
    torch.testing.assert_close(logp_BT.grad, torch.tensor(gradients), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["kl", "abs", "mse", "low_var_kl"])
@pytest.mark.parametrize("seed", SEEDS)
def test_kl_at_the_sampled_token_is_its_formula(seed: int, form: Any) -> None:
    sample = random_sample(seed)
    for logp, ref, kl in zip(
        sample.logp_BT.flatten().tolist(),
        sample.logp_old_BT.flatten().tolist(),
        kl_terms(sample.logp_BT, sample.logp_old_BT, form).flatten().tolist(),
        strict=True,
    ):
        d, q = logp - ref, bound(ref - logp)
        k3 = min(max(math.exp(q) - q - 1, -10.0), 10.0)
        expected = {"kl": d, "abs": abs(d), "mse": d * d / 2, "low_var_kl": k3}[form]
        assert kl == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_kl_as_reward_is_taken_off_each_valid_token(seed: int) -> None:
    sample = random_sample(seed)
    mask_BT, reward_BT = sample.batch.mask_BT, torch.ones_like(sample.logp_BT)
    logp_BT = sample.logp_BT.clone().requires_grad_()
    penalised_BT = apply_kl_penalty(reward_BT, logp_BT, sample.logp_old_BT, mask_BT, coef=0.1, form="mse")
    expected = [
        [(1 - 0.1 * (p - r) ** 2 / 2) * m for p, r, m in zip(*rows, strict=True)]
        for rows in zip(sample.logp_BT.tolist(), sample.logp_old_BT.tolist(), mask_BT.tolist(), strict=True)
    ]
    torch.testing.assert_close(penalised_BT, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert not penalised_BT.requires_grad


@pytest.mark.parametrize("seed", SEEDS)
def test_value_loss_is_half_the_larger_squared_error_and_has_no_gradient_where_clipped(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    value, old, target = (torch.randn(40, 1, generator=random) for _ in range(3))
    value.requires_grad_()
    loss, clipped_BT = (
        value_terms(value, old, target, clip_range=0.5),
        value_clipped(value, old, target, clip_range=0.5),
    )
    loss.sum().backward()
    losses, slopes = loss.detach().flatten().tolist(), value.grad.flatten().tolist()
    assert 0 < clipped_BT.sum() < 40
    rows = zip(*(column.flatten().tolist() for column in (value, old, target)), strict=True)
    for i, (v, o, r) in enumerate(rows):
        free, bounded = (v - r) ** 2, (min(max(v, o - 0.5), o + 0.5) - r) ** 2
        assert losses[i] == pytest.approx(max(free, bounded) / 2, rel=1e-4, abs=1e-6)
        assert slopes[i] == pytest.approx(0.0 if bounded > free else v - r, rel=1e-4, abs=1e-6)
        assert bool(clipped_BT[i]) == (bounded > free)
