"""The tensor code against plain loops over the equations, on ragged batches in shuffled order."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from cepo.algo.base import Algorithm
from cepo.algo.batch import EvidenceTensors
from cepo.algo.core import group_advantage, reweight
from cepo.algo.losses import Totals, aggregate, clipped_surrogate, clipped_terms
from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.policy_gradient import PolicyGradient
from cepo.algo.methods.rlsd import Rlsd
from cepo.algo.variants import Grpo
from tests.parity.support import (
    AGGREGATIONS,
    Scored,
    both,
    loop_group_advantage,
    loop_reweight,
    loop_sum,
    loop_surrogate,
    loop_token_weights,
    make_batch,
    random_sample,
)

SEEDS = range(6)


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("seed", SEEDS)
def test_group_advantage_is_equation_1(seed: int, scale: Any) -> None:
    batch = random_sample(seed).batch
    expected = loop_group_advantage(batch.reward_B.tolist(), batch.group_B.tolist(), scale=scale)
    adv_B = group_advantage(batch.reward_B, batch.group_B, scale=scale)
    torch.testing.assert_close(adv_B, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert adv_B.count_nonzero() == 7  # three of the group with a failed reward, and four of the mixed group


@pytest.mark.parametrize("eps", [0.0, 1e-4, 0.5])
def test_group_advantage_adds_eps_to_the_unbiased_deviation(eps: float) -> None:
    reward_B = torch.tensor([1.0, 0.25, 0.0])
    expected = loop_group_advantage(reward_B.tolist(), [0, 0, 0], eps=eps)
    adv_B = group_advantage(reward_B, torch.zeros(3, dtype=torch.long), eps=eps)
    torch.testing.assert_close(adv_B, torch.tensor(expected), rtol=1e-4, atol=0)


def test_groups_are_found_by_id_and_not_by_position() -> None:
    apart_B = group_advantage(torch.tensor([1.0, 0.0, 0.9, 0.1]), torch.tensor([8, 8, 2, 2]))
    mixed_B = group_advantage(torch.tensor([1.0, 0.9, 0.0, 0.1]), torch.tensor([8, 2, 8, 2]))
    assert torch.equal(mixed_B, apart_B[[0, 2, 1, 3]])


@pytest.mark.parametrize("reward", [0.1, 0.3, 0.9, 1.0, 0.1 + 0.2])
@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_equal_rewards_give_exactly_zero(reward: float, size: int) -> None:
    adv_B = group_advantage(torch.full((size,), reward), torch.zeros(size, dtype=torch.long))
    assert torch.equal(adv_B, torch.zeros(size))


@pytest.mark.parametrize("failed", [math.nan, math.inf, -math.inf])
def test_a_failed_reward_gets_zero_and_leaves_its_peers_as_if_it_were_not_there(failed: float) -> None:
    with_B = group_advantage(torch.tensor([1.0, failed, 0.0, 0.1]), torch.zeros(4, dtype=torch.long))
    without_B = group_advantage(torch.tensor([1.0, 0.0, 0.1]), torch.zeros(3, dtype=torch.long))
    assert with_B[1] == 0
    assert torch.equal(with_B[[0, 2, 3]], without_B)


def test_a_group_left_with_one_usable_reward_or_none_is_zero() -> None:
    adv_B = group_advantage(torch.tensor([1.0, math.nan, 1.0, math.nan, math.inf]), torch.tensor([1, 1, 2, 3, 3]))
    assert torch.equal(adv_B, torch.zeros(5))


@pytest.mark.parametrize(("lam", "eps_w"), [(0.5, 0.5), (0.5, 0.2), (1.0, 0.9), (0.3, 0.7), (0.0, 0.5)])
@pytest.mark.parametrize("seed", SEEDS)
def test_reweight_is_equations_4_5_and_7(seed: int, lam: float, eps_w: float) -> None:
    random = torch.Generator().manual_seed(seed)
    adv_BT = torch.randn(9, 5, generator=random)
    adv_BT[2] = 0
    evidence = [-torch.rand(9, 5, generator=random) * 2 for _ in range(2)]
    evidence[0][:4, 0] = torch.tensor([-math.inf, -100.0, -math.inf, math.nan])
    evidence[1][:5, 1] = torch.tensor([-math.inf, -100.0, -math.inf, math.nan, -25.0])
    evidence[0][5, 2] = evidence[1][5, 2] = -math.inf
    expected = loop_reweight(adv_BT.tolist(), evidence[0].tolist(), evidence[1].tolist(), lam, eps_w)
    torch.testing.assert_close(
        reweight(adv_BT, evidence[0], evidence[1], lam, eps_w), torch.tensor(expected), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("step", [0, 3, 9, 10, 40])
@pytest.mark.parametrize("method", [Cepo, Rlsd])
@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_of_a_method_are_its_equations(seed: int, method: type[Cepo] | type[Rlsd], step: int) -> None:
    batch = random_sample(seed).batch
    adv_B = loop_group_advantage(batch.reward_B.tolist(), batch.group_B.tolist())
    adv_BT = [[a * valid for valid in mask] for a, mask in zip(adv_B, batch.mask_BT.tolist(), strict=True)]
    plus, minus = (logp_BT.tolist() for logp_BT in both(batch))
    expected = loop_reweight(adv_BT, plus, minus, 0.8 * max(0.0, 1 - step / 10), 0.4)
    actual_BT = method(lam=0.8, eps_w=0.4, decay_steps=10).advantages(batch, step).adv_BT
    torch.testing.assert_close(actual_BT, torch.tensor(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [Grpo, Rlsd, Cepo])
def test_options_of_the_group_advantage_reach_it(method: type[Algorithm]) -> None:
    batch = random_sample(0).batch
    rewards, groups = batch.reward_B.tolist(), batch.group_B.tolist()
    for options, expected in (
        ({"advantage_scale": "none"}, loop_group_advantage(rewards, groups, scale="none")),
        ({"advantage_eps": 0.5}, loop_group_advantage(rewards, groups, eps=0.5)),
    ):
        adv_BT = method(**options).advantages(make_batch(batch.mask_BT, batch.reward_B, batch.group_B), 0).adv_BT
        torch.testing.assert_close(adv_BT, torch.tensor(expected)[:, None] * batch.mask_BT, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dual", [None, 1.5, 3.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_surrogate_terms_are_ppo_with_dual_clip(seed: int, dual: float | None) -> None:
    sample = random_sample(seed)
    adv_BT = Grpo().advantages(sample.batch, 0).adv_BT
    expected, _ = loop_surrogate(
        sample.logp_BT.tolist(), sample.logp_old_BT.tolist(), adv_BT.tolist(), low=0.2, high=0.28, dual=dual
    )
    terms_BT = clipped_terms(sample.logp_BT, sample.logp_old_BT, adv_BT, clip_low=0.2, clip_high=0.28, dual_clip=dual)
    torch.testing.assert_close(terms_BT, torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("dual", [None, 3.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_loss_and_gradient_are_the_sums_written_out(seed: int, dual: float | None, aggregation: Any) -> None:
    sample = random_sample(seed)
    mask_BT, adv_BT = sample.batch.mask_BT, Cepo().advantages(sample.batch, 0).adv_BT
    masks, width = mask_BT.tolist(), mask_BT.shape[1]
    losses, slopes = loop_surrogate(
        sample.logp_BT.tolist(), sample.logp_old_BT.tolist(), adv_BT.tolist(), low=0.2, high=0.28, dual=dual
    )
    filled = sum(1 for mask in masks if any(mask))
    tokens = sum(int(valid) for mask in masks for valid in mask)
    weights = loop_token_weights(masks, aggregation, tokens=tokens, sequences=filled, max_tokens=width)
    assert filled == 12

    logp_BT = sample.logp_BT.clone().requires_grad_()
    loss = clipped_surrogate(
        logp_BT,
        sample.logp_old_BT,
        adv_BT,
        mask_BT,
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=dual,
        aggregation=aggregation,
    )
    loss.backward()
    assert float(loss.detach()) == pytest.approx(loop_sum(weights, losses), rel=1e-5, abs=1e-5)
    expected = [[w * s for w, s in zip(*rows, strict=True)] for rows in zip(weights, slopes, strict=True)]
    torch.testing.assert_close(logp_BT.grad, torch.tensor(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_aggregation_divides_by_the_totals_it_is_given(aggregation: Any) -> None:
    sample = random_sample(0)
    loss_BT, mask_BT = sample.logp_BT, sample.batch.mask_BT
    weights = loop_token_weights(mask_BT.tolist(), aggregation, tokens=400, sequences=31, max_tokens=64)
    loss = aggregate(loss_BT, mask_BT, aggregation, Totals(400, 31, 64))
    assert float(loss) == pytest.approx(loop_sum(weights, loss_BT.tolist()), rel=1e-5)


@pytest.mark.parametrize("algorithm", [Grpo(), Rlsd(), Cepo(dual_clip=3.0, aggregation="seq-mean-token-mean")])
def test_a_method_from_rewards_to_loss_is_its_equations(algorithm: PolicyGradient) -> None:
    sample = random_sample(1)
    batch, masks = sample.batch, sample.batch.mask_BT.tolist()
    adv_B = loop_group_advantage(batch.reward_B.tolist(), batch.group_B.tolist())
    adv = [[a * valid for valid in mask] for a, mask in zip(adv_B, masks, strict=True)]
    if isinstance(algorithm, Rlsd | Cepo):
        plus, minus = (logp_BT.tolist() for logp_BT in both(batch))
        adv = loop_reweight(adv, plus, minus, algorithm.lam, algorithm.eps_w)
    losses, _ = loop_surrogate(
        sample.logp_BT.tolist(), sample.logp_old_BT.tolist(), adv, low=0.2, high=0.28, dual=algorithm.dual_clip
    )
    totals = Totals.of(batch.mask_BT, batch.max_tokens)
    weights = loop_token_weights(
        masks, algorithm.aggregation, tokens=totals.tokens, sequences=totals.sequences, max_tokens=totals.max_tokens
    )
    student = Scored(sample.logp_BT)
    output = algorithm.loss(student, sample.logp_old_BT, batch, algorithm.advantages(batch, 0).adv_BT, batch)
    assert float(output.loss) == pytest.approx(loop_sum(weights, losses), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_contrast_with_several_wrong_hints_is_a_loop_over_sequences_and_tokens(seed: int) -> None:
    algorithm = Cepo(wrong_hints=3, lam=0.7, eps_w=0.4, no_negative="grpo", modulate_all_wrong=False)
    sample, random = random_sample(seed).batch, torch.Generator().manual_seed(seed)
    accuracy_B = sample.accuracy_B * (sample.group_B != 3)  # one group without a correct answer
    evidence = [
        EvidenceTensors(-3 * torch.rand(sample.mask_BT.shape, generator=random), torch.rand(13, generator=random) < 0.7)
        for _ in algorithm.asks
    ]
    batch = replace(sample, accuracy_B=accuracy_B, evidence=dict(zip(algorithm.asks, evidence, strict=True)))
    adv_B = loop_group_advantage(batch.reward_B.tolist(), batch.group_B.tolist())
    right = {int(group) for group, accuracy in zip(batch.group_B, accuracy_B, strict=True) if accuracy >= 0.5}
    expected = torch.zeros_like(batch.mask_BT)
    for row in range(batch.size):
        wrong = [ask_evidence.logp_BT[row].tolist() for ask_evidence in evidence[1:] if ask_evidence.applicable_B[row]]
        for t in range(len(batch.response_ids[row])):
            multiplier = 1.0
            if wrong and evidence[0].applicable_B[row] and int(batch.group_B[row]) in right:
                delta = float(evidence[0].logp_BT[row, t]) - sum(logps[t] for logps in wrong) / len(wrong)
                sign = (adv_B[row] > 0) - (adv_B[row] < 0)
                multiplier = 0.3 + 0.7 * min(max(math.exp(sign * delta), 0.6), 1.4)
            expected[row, t] = adv_B[row] * multiplier
    torch.testing.assert_close(algorithm.advantages(batch, 0).adv_BT, expected, rtol=1e-4, atol=1e-6)
    assert right
