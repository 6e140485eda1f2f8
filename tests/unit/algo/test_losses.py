"""Losses under splits and permutations, empty batches, clip fractions, importance weights, and the learning rate.

Shapes: B sequences, T response tokens (padded).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from cepo.algo.base import Algorithm
from cepo.algo.losses import Totals, aggregate, clip_fractions, clipped_surrogate, clipped_terms
from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.policy_gradient import PolicyGradient
from cepo.algo.methods.rlsd import Rlsd
from cepo.algo.schedules import cosine_with_warmup, linear_decay
from cepo.algo.variants import Grpo
from tests.parity.support import (
    AGGREGATIONS,
    Scored,
    make_batch,
    random_sample,
)


@pytest.mark.parametrize("split", [[13], [1] * 13, [5, 8], [2, 7, 4]])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_loss_and_gradient_do_not_depend_on_the_micro_batches(aggregation: Any, split: list[int]) -> None:
    sample = random_sample(6)
    algorithm = Cepo(aggregation=aggregation, dual_clip=3.0, importance_cap=2.0)
    adv_BT = algorithm.advantages(sample.batch, 0).adv_BT
    whole_BT = sample.logp_BT.clone().requires_grad_()
    whole = algorithm.loss(Scored(whole_BT), sample.logp_old_BT, sample.batch, adv_BT, sample.batch)
    whole.loss.backward()

    logp_BT, loss, sums = sample.logp_BT.clone().requires_grad_(), 0.0, dict.fromkeys(whole.token_sums, 0.0)
    for rows in torch.arange(13).split(split):
        micro = sample.batch.rows(rows.tolist())
        cut = slice(micro.mask_BT.shape[1])
        student, old_BT = Scored(logp_BT[rows, cut]), sample.logp_old_BT[rows, cut]
        part = algorithm.loss(student, old_BT, micro, adv_BT[rows, cut], sample.batch)
        part.loss.backward()
        loss += float(part.loss.detach())
        sums = {key: value + part.token_sums[key] for key, value in sums.items()}
    assert loss == pytest.approx(float(whole.loss.detach()), rel=1e-5)
    assert sums == pytest.approx(whole.token_sums, rel=1e-5, abs=1e-5)
    torch.testing.assert_close(logp_BT.grad, whole_BT.grad, rtol=1e-5, atol=1e-8)
    assert whole_BT.grad.any()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("method", [Grpo, Rlsd, Cepo])
def test_permuting_the_batch_permutes_the_result(method: Callable[..., Algorithm], aggregation: Any) -> None:
    sample, algorithm = random_sample(7), method(aggregation=aggregation)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(7))
    shuffled = sample.batch.rows(order.tolist())
    adv_BT, moved_BT = algorithm.advantages(sample.batch, 0).adv_BT, algorithm.advantages(shuffled, 0).adv_BT
    torch.testing.assert_close(moved_BT, adv_BT[order], rtol=1e-5, atol=1e-7)

    logp_BT, old_BT = sample.logp_BT, sample.logp_old_BT
    loss = algorithm.loss(Scored(logp_BT), old_BT, sample.batch, adv_BT, sample.batch).loss
    moved = algorithm.loss(Scored(logp_BT[order]), old_BT[order], shuffled, moved_BT, shuffled).loss
    torch.testing.assert_close(moved, loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [4, 0])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_empty_mask_gives_zero_with_a_graph(aggregation: Any, length: int) -> None:
    logp_BT = torch.full((3, length), -1.0, requires_grad=True)
    zero_BT = torch.zeros(3, length)
    loss = clipped_surrogate(
        logp_BT, zero_BT, zero_BT + 1, zero_BT, clip_low=0.2, clip_high=0.28, aggregation=aggregation
    )
    loss.backward()
    assert loss.detach() == 0
    assert torch.equal(logp_BT.grad, zero_BT)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_values_off_the_mask_cannot_matter(aggregation: Any) -> None:
    sample = random_sample(8)
    mask_BT = sample.batch.mask_BT
    noisy_BT = torch.where(mask_BT.bool(), sample.logp_BT, torch.inf)
    clean, noisy = (aggregate(loss_BT, mask_BT, aggregation) for loss_BT in (sample.logp_BT, noisy_BT))
    assert torch.equal(clean, noisy)


@pytest.mark.parametrize("padding", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_whatever_stands_on_padding_the_gradient_is_a_number_and_reaches_the_policy_alone(
    padding: float, dual_clip: float | None
) -> None:
    sample = random_sample(8)
    mask_BT, valid_BT = sample.batch.mask_BT, sample.batch.mask_BT.bool()
    clean_inputs = [
        torch.where(valid_BT, x_BT, 0.0) for x_BT in (sample.logp_BT, sample.logp_BT - 0.1, sample.logp_BT + 1)
    ]
    gradients = []
    for fill in (0.0, padding):
        inputs = [torch.where(valid_BT, x_BT, fill).requires_grad_() for x_BT in clean_inputs]
        logp_BT, logp_old_BT, adv_BT = inputs
        clipped_surrogate(
            logp_BT,
            logp_old_BT,
            adv_BT,
            mask_BT,
            clip_low=0.2,
            clip_high=0.28,
            aggregation="token-mean",
            dual_clip=dual_clip,
        ).backward()
        gradients.append([x_BT.grad for x_BT in inputs])
    (clean_BT, *_), (noisy_BT, *others) = gradients
    assert others == [None, None]
    assert noisy_BT is not None
    assert clean_BT is not None
    assert noisy_BT.any()
    assert torch.equal(noisy_BT, clean_BT)


def test_an_empty_response_stays_out_of_every_denominator() -> None:
    mask_BT = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert Totals.of(mask_BT) == Totals(tokens=3, sequences=2, max_tokens=3)
    assert Totals.of(mask_BT, 64) == Totals(tokens=3, sequences=2, max_tokens=64)


def test_an_unknown_aggregation_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown aggregation 'mean'"):
        aggregate(torch.ones(1, 1), torch.ones(1, 1), "mean")  # type: ignore[arg-type]


def test_clip_fractions_mark_where_the_surrogate_is_cut() -> None:
    ratio_BT = torch.tensor([[0.5, 0.5, 2.0, 2.0, 1.0, 0.79, 1.29, 0.81, 1.27, 0.5]])
    adv_BT = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -2.0, 2.0, -2.0, 2.0, 0.0]])
    low_BT, high_BT = clip_fractions(ratio_BT.log(), torch.zeros_like(ratio_BT), adv_BT, clip_low=0.2, clip_high=0.28)
    assert low_BT.nonzero()[:, 1].tolist() == [1, 5]
    assert high_BT.nonzero()[:, 1].tolist() == [2, 6]


@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_vanishes_exactly_where_the_clip_fractions_say(seed: int) -> None:
    sample = random_sample(seed)
    logp_BT, adv_BT = sample.logp_BT.clone().requires_grad_(), Grpo().advantages(sample.batch, 0).adv_BT
    clipped_terms(logp_BT, sample.logp_old_BT, adv_BT, clip_low=0.2, clip_high=0.28).sum().backward()
    low_BT, high_BT = clip_fractions(logp_BT, sample.logp_old_BT, adv_BT, clip_low=0.2, clip_high=0.28)
    reach_BT = (adv_BT != 0) & ((sample.logp_BT - sample.logp_old_BT).abs() <= 20)
    assert torch.equal(logp_BT.grad[reach_BT] == 0, (low_BT | high_BT)[reach_BT])
    assert low_BT.any()
    assert high_BT.any()


@pytest.mark.parametrize("algorithm", [Grpo(), Rlsd(dual_clip=3.0), Cepo(clip_high=0.5, aggregation="dr-grpo")])
def test_the_loss_of_a_method_is_the_clipped_surrogate(algorithm: PolicyGradient) -> None:
    sample = random_sample(9)
    mask_BT, adv_BT = sample.batch.mask_BT, algorithm.advantages(sample.batch, 0).adv_BT
    expected = clipped_surrogate(
        sample.logp_BT,
        sample.logp_old_BT,
        adv_BT,
        mask_BT,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        dual_clip=algorithm.dual_clip,
        aggregation=algorithm.aggregation,
    )
    output = algorithm.loss(Scored(sample.logp_BT), sample.logp_old_BT, sample.batch, adv_BT, sample.batch)
    assert torch.equal(output.loss, expected)


def test_the_loss_reports_sums_over_valid_tokens() -> None:
    logp_BT = torch.tensor([[1.5, 0.2, 1.0], [0.9, 9.0, 9.0]]).log()
    batch = make_batch(torch.tensor([[1.0, 1, 1], [1, 0, 0]]), torch.zeros(2), torch.zeros(2, dtype=torch.long))
    adv_BT = torch.tensor([[1.0, -1, 1], [1, 0, 0]])
    sums = Grpo().loss(Scored(logp_BT), torch.zeros(2, 3), batch, adv_BT, batch).token_sums
    minus_logp = -math.log(1.5) - math.log(0.2) - math.log(0.9)
    expected = {"clip/ppo_low": 1, "clip/ppo_high": 1, "kl/old_new": minus_logp, "entropy/sampled": minus_logp}
    assert sums == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("cap", "weights"), [(None, [1, 1, 1]), (0.0, [1, 1, 1]), (2.0, [0.5, 2, 1]), (0.8, [0.5, 0.8, 0.8])]
)
def test_importance_weights_are_truncated_at_the_cap(cap: float | None, weights: list[float]) -> None:
    old_BT = torch.full((1, 3), -1.0)
    rollout_BT = old_BT - torch.tensor([[0.5, 30.0, 1.0]]).log()
    group_B = torch.zeros(1, dtype=torch.long)
    batch = make_batch(torch.ones(1, 3), torch.ones(1), group_B, rollout_logp_BT=rollout_BT)
    logp_BT, adv_BT = old_BT.clone().requires_grad_(), torch.tensor([[1.0, 2.0, -3.0]])
    loss = Grpo(importance_cap=cap).loss(Scored(logp_BT), old_BT, batch, adv_BT, batch).loss
    loss.backward()
    expected_BT = -adv_BT * torch.tensor([weights]) / 3
    torch.testing.assert_close(loss.detach(), expected_BT.sum())
    torch.testing.assert_close(logp_BT.grad, expected_BT)


@given(st.integers(0, 20), st.integers(1, 60), st.integers(0, 200))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_the_learning_rate_factor_is_a_fraction_and_zero_after_the_end(warmup: int, rest: int, step: int) -> None:
    factor = cosine_with_warmup(warmup, warmup + rest, step)
    assert 0 <= factor <= 1
    if step >= warmup + rest:
        assert factor == pytest.approx(0, abs=1e-12)
    elif step >= warmup:
        assert cosine_with_warmup(warmup, warmup + rest, step + 1) < factor


@pytest.mark.parametrize("decay_steps", [0, -1])
def test_a_decay_over_no_steps_is_refused_with_its_value(decay_steps: int) -> None:
    with pytest.raises(ValueError, match=f"decay_steps must be at least 1, got {decay_steps}"):
        linear_decay(0.5, decay_steps, 0)
