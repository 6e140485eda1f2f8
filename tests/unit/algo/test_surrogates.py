"""Identities of the policy losses, independence of splits and padding, empty batches, and the bound of 20.

Shapes: B sequences, T response tokens (padded).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.kl import kl_terms
from cepo.algo.losses import Totals, aggregate, clipped_terms, ratio_clip_fractions
from cepo.algo.surrogates import cispo_terms, gspo_terms, gspo_token_terms, sapo_terms, sequence_ratio
from cepo.algo.value import value_terms
from tests.parity.support import AGGREGATIONS, Sample, random_sample

CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28}
Terms = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
LOSSES: dict[str, Terms] = {
    "ppo": lambda p, o, a, _: clipped_terms(p, o, a, **CLIP, dual_clip=3.0),
    "gspo": lambda p, o, a, m: gspo_terms(p, o, a, m, **CLIP, dual_clip=3.0),
    "gspo_token": lambda p, o, a, m: gspo_token_terms(p, o, a, m, **CLIP),
    "cispo": lambda p, o, a, _: cispo_terms(p, o, a, ratio_max=5.0),
    "sapo": lambda p, o, a, _: sapo_terms(p, o, a, tau_pos=1.0, tau_neg=1.05),
    "ppo_with_kl": lambda p, o, a, _: clipped_terms(p, o, a, **CLIP) + 0.1 * kl_terms(p, o - 0.1, "low_var_kl"),
    "value": lambda p, o, a, _: value_terms(p, o, a, clip_range=0.5),
}
GSPO: dict[str, Terms] = {
    "gspo": lambda *t: gspo_terms(*t, **CLIP),
    "gspo_token": lambda *t: gspo_token_terms(*t, **CLIP),
}


def uniform_advantage(sample: Sample, seed: int = 0) -> Tensor:
    adv_B1 = torch.randn(13, 1, generator=torch.Generator().manual_seed(seed))
    return adv_B1 * sample.batch.mask_BT


def gradient(terms: Terms, sample: Sample, adv_BT: Tensor, aggregation: Any = "token-mean") -> tuple[Tensor, Tensor]:
    """Returns the loss and its gradient with respect to the log-probs, [B, T]."""
    logp_BT, mask_BT = sample.logp_BT.clone().requires_grad_(), sample.batch.mask_BT
    loss = aggregate(terms(logp_BT, sample.logp_old_BT, adv_BT, mask_BT), mask_BT, aggregation)
    loss.backward()
    return loss.detach(), logp_BT.grad


@pytest.mark.parametrize("split", [[1] * 13, [5, 8], [2, 7, 4]])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_do_not_depend_on_the_micro_batches(name: str, aggregation: Any, split: list[int]) -> None:
    sample = random_sample(6)
    mask_BT, adv_BT, totals = sample.batch.mask_BT, uniform_advantage(sample), Totals.of(sample.batch.mask_BT)
    whole, whole_gradient_BT = gradient(LOSSES[name], sample, adv_BT, aggregation)
    logp_BT, loss = sample.logp_BT.clone().requires_grad_(), 0.0
    for rows in torch.arange(13).split(split):
        cut = slice(int(mask_BT[rows].sum(dim=1).max()))  # a micro-batch is as wide as its longest response
        micro_BT = mask_BT[rows, cut]
        terms_BT = LOSSES[name](logp_BT[rows, cut], sample.logp_old_BT[rows, cut], adv_BT[rows, cut], micro_BT)
        part = aggregate(terms_BT, micro_BT, aggregation, totals)
        part.backward()
        loss += float(part.detach())
    assert loss == pytest.approx(float(whole), rel=1e-5)
    torch.testing.assert_close(logp_BT.grad, whole_gradient_BT, rtol=1e-5, atol=1e-8)
    assert whole_gradient_BT.any()


@pytest.mark.parametrize("name", LOSSES)
def test_permuting_the_batch_permutes_the_terms(name: str) -> None:
    sample, order = random_sample(7), torch.randperm(13, generator=torch.Generator().manual_seed(7))
    tensors = sample.logp_BT, sample.logp_old_BT, uniform_advantage(sample), sample.batch.mask_BT
    moved_BT = LOSSES[name](*(tensor[order] for tensor in tensors))
    torch.testing.assert_close(moved_BT, LOSSES[name](*tensors)[order])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("dual", [None, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_gspo_token_is_gspo_under_a_uniform_advantage(seed: int, dual: float | None, aggregation: Any) -> None:
    sample = random_sample(seed)
    adv_BT = uniform_advantage(sample, seed)
    by_sequence = gradient(lambda *t: gspo_terms(*t, **CLIP, dual_clip=dual), sample, adv_BT, aggregation)
    by_token = gradient(lambda *t: gspo_token_terms(*t, **CLIP, dual_clip=dual), sample, adv_BT, aggregation)
    torch.testing.assert_close(by_token[0], by_sequence[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(by_token[1], by_sequence[1], rtol=1e-5, atol=1e-7)
    assert by_token[1].any()


def test_gspo_token_differs_from_gspo_in_the_gradient_alone_when_the_advantage_varies() -> None:
    sample = random_sample(0)
    adv_BT = uniform_advantage(sample) * torch.rand(13, 7, generator=torch.Generator().manual_seed(0))
    by_sequence, by_token = (gradient(GSPO[name], sample, adv_BT) for name in ("gspo", "gspo_token"))
    torch.testing.assert_close(by_token[0], by_sequence[0])
    assert (by_token[1] - by_sequence[1]).abs().max() > 1e-3


def test_gspo_averages_one_clipped_term_per_sequence() -> None:
    mask_BT = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    logp_BT = torch.tensor([[1.2, 1.0, 1.0], [0.5, 1.0, 1.0]]).log()
    adv_BT = torch.tensor([[1.0], [-1.0]]) * mask_BT
    loss = aggregate(gspo_terms(logp_BT, 0 * logp_BT, adv_BT, mask_BT, **CLIP), mask_BT, "seq-mean-token-mean")
    assert float(loss) == pytest.approx((-(1.2 ** (1 / 3)) + 0.8) / 2)


@pytest.mark.parametrize("name", GSPO)
def test_gspo_of_one_token_is_the_clipped_surrogate(name: str) -> None:
    sample = random_sample(1)
    given = (sample.logp_BT, sample.logp_old_BT, uniform_advantage(sample))
    logp_N1, logp_old_N1, adv_N1 = (tensor.flatten()[:, None] for tensor in given)
    expected_N1 = clipped_terms(logp_N1, logp_old_N1, adv_N1, **CLIP)
    actual_N1 = GSPO[name](logp_N1, logp_old_N1, adv_N1, torch.ones_like(expected_N1))
    torch.testing.assert_close(actual_N1, expected_N1)


def test_gspo_clips_whole_sequences() -> None:
    sample = random_sample(2)
    mask_BT = sample.batch.mask_BT
    ratio_BT = sequence_ratio(sample.logp_BT, sample.logp_old_BT, mask_BT)
    low_BT, high_BT = ratio_clip_fractions(ratio_BT, uniform_advantage(sample), **CLIP)
    cut_BT = (low_BT | high_BT)[mask_BT.bool()]
    assert 0 < cut_BT.sum() < len(cut_BT)
    for row, mask in zip(low_BT | high_BT, mask_BT.bool(), strict=True):
        assert len(set(row[mask].tolist())) <= 1


@pytest.mark.parametrize("name", ["ppo", "gspo", "gspo_token", "cispo", "sapo"])
def test_on_policy_every_loss_has_the_policy_gradient(name: str) -> None:
    sample = random_sample(3)
    on_policy = Sample(sample.batch, sample.logp_old_BT, sample.logp_old_BT)
    adv_BT, mask_BT = uniform_advantage(sample), sample.batch.mask_BT
    _, grad_BT = gradient(LOSSES[name], on_policy, adv_BT)
    torch.testing.assert_close(grad_BT, -adv_BT / mask_BT.sum())


@pytest.mark.parametrize("seed", range(4))
def test_cispo_keeps_the_gradient_of_every_token_also_beyond_the_bound_of_20(seed: int) -> None:
    sample = random_sample(seed)
    adv_BT, mask_BT = uniform_advantage(sample), sample.batch.mask_BT.bool()
    _, grad_BT = gradient(lambda p, o, a, _: cispo_terms(p, o, a, ratio_min=0.5, ratio_max=2.0), sample, adv_BT)
    assert torch.equal(grad_BT != 0, mask_BT)
    assert (sample.logp_BT - sample.logp_old_BT).abs().max() > 20


def test_cispo_bounds_are_those_of_the_ratio_and_ratios_below_1_are_not_lifted() -> None:
    logp_BT = torch.tensor([[0.01, 0.5, 1.0, 3.0, 9.0]]).log().requires_grad_()
    cispo_terms(logp_BT, torch.zeros(1, 5), torch.ones(1, 5), ratio_max=5.0).sum().backward()
    torch.testing.assert_close(logp_BT.grad, -torch.tensor([[0.01, 0.5, 1.0, 3.0, 5.0]]))


def test_sapo_fades_with_the_distance_from_1_and_faster_for_negative_advantages() -> None:
    ratio_BT = torch.tensor([[1.0, 1.5, 2.0, 4.0]])
    slopes = []
    for sign in (1.0, -1.0):
        logp_BT = ratio_BT.log().requires_grad_()
        adv_BT = torch.full((1, 4), sign)
        sapo_terms(logp_BT, torch.zeros(1, 4), adv_BT, tau_pos=1.0, tau_neg=2.0).sum().backward()
        slopes.append((-sign * logp_BT.grad / ratio_BT)[0])  # the derivative with respect to the ratio
    assert slopes[0][0] == slopes[1][0] == 1
    assert (slopes[0].diff() < 0).all()
    assert (slopes[1][1:] < slopes[0][1:]).all()


@pytest.mark.parametrize("width", [3, 0])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_micro_batch_masked_whole_gives_zero_and_keeps_a_graph(name: str, aggregation: Any, width: int) -> None:
    logp_BT = torch.full((2, width), -1.0, requires_grad=True)
    zero_BT = torch.zeros(2, width)
    loss = aggregate(LOSSES[name](logp_BT, zero_BT, zero_BT + 1, zero_BT), zero_BT, aggregation)
    loss.backward()
    assert loss.detach() == 0
    assert torch.equal(logp_BT.grad, zero_BT)


@pytest.mark.parametrize("log_ratio", [25.0, -25.0, 1000.0, -1000.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("name", ["ppo", "gspo", "gspo_token", "sapo"])
def test_the_clamp_at_20_keeps_the_loss_finite_and_cuts_the_gradient(
    name: str, advantage: float, log_ratio: float
) -> None:
    logp_BT, zero_BT = torch.full((1, 2), log_ratio, requires_grad=True), torch.zeros(1, 2)
    loss_BT = LOSSES[name](logp_BT, zero_BT, zero_BT + advantage, zero_BT + 1)
    loss_BT.sum().backward()
    assert loss_BT.isfinite().all()
    assert torch.equal(logp_BT.grad, zero_BT)


@pytest.mark.parametrize("name", ["gspo", "gspo_token"])
def test_what_padding_holds_cannot_matter_to_the_ratio_of_a_sequence(name: str) -> None:
    mask_BT = torch.tensor([[1.0, 1.0, 0.0]])
    results = []
    for padding in (0.0, math.nan, -math.inf):
        logp_BT = torch.tensor([[-1.0, -2.0, padding]], requires_grad=True)
        loss = aggregate(
            LOSSES[name](logp_BT, torch.tensor([[-1.1, -1.9, 0.0]]), mask_BT, mask_BT), mask_BT, "token-mean"
        )
        loss.backward()
        results.append([float(loss.detach()), *logp_BT.grad[0].tolist()])
    assert results[0] == results[1] == results[2]
