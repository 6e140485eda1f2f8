"""The estimators against plain loops over their equations, on ragged batches in shuffled order.

The loops take the valid tokens of one sequence as a plain list, so they need no mask.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.advantages import (
    gae,
    pass_at_k_advantage,
    reinforce_plus_plus_advantage,
    reinforce_plus_plus_baseline_advantage,
    rloo_advantage,
    terminal_reward,
    whiten,
)
from cepo.algo.core import group_advantage
from tests.parity.support import random_sample

SEEDS = range(6)


def peers(rewards: list[float], groups: list[int], i: int) -> list[float]:
    """Returns the finite rewards of i's group, including that of i."""
    return [r for r, g in zip(rewards, groups, strict=True) if g == groups[i] and math.isfinite(r)]


def deviation(values: list[float], correction: int = 1) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - correction))


def loop_whiten(rows: list[list[float]]) -> list[list[float]]:
    """Returns (v - mean) / sqrt(var + 1e-8), with mean and variance over all values of all rows."""
    values = [v for row in rows for v in row]
    mean, var = math.fsum(values) / len(values), deviation(values) ** 2
    return [[(v - mean) / math.sqrt(var + 1e-8) for v in row] for row in rows]


def valid(rows_BT: Tensor, mask_BT: Tensor) -> list[list[float]]:
    """Returns the valid entries of each sequence."""
    return [row[mask.bool()].tolist() for row, mask in zip(rows_BT, mask_BT, strict=True)]


def assert_rows(actual_BT: Tensor, mask_BT: Tensor, expected: list[list[float]]) -> None:
    assert not actual_BT[~mask_BT.bool()].any()
    for row, (values, expected_values) in enumerate(zip(valid(actual_BT, mask_BT), expected, strict=True)):
        assert values == pytest.approx(expected_values, rel=1e-4, abs=1e-5), row


def token_rewards(seed: int, *, holes: bool) -> tuple[Tensor, Tensor, list[bool]]:
    """Returns token rewards with a failed sample, a mask that may have holes, and whether each sample is usable."""
    batch = random_sample(seed).batch
    random = torch.Generator().manual_seed(seed)
    mask_BT = batch.mask_BT
    if holes:
        mask_BT = mask_BT * (torch.rand(mask_BT.shape, generator=random) < 0.7)
    penalty_BT = torch.rand(mask_BT.shape, generator=random) * 0.1
    reward_BT = terminal_reward(batch.reward_B, mask_BT) - penalty_BT * mask_BT
    usable = [all(map(math.isfinite, row)) for row in valid(reward_BT, mask_BT)]
    return reward_BT, mask_BT, usable


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("scale", ["std", "batch-std"])
@pytest.mark.parametrize("seed", SEEDS)
def test_group_advantage_divides_by_the_chosen_deviation(seed: int, scale: Any, correction: int) -> None:
    batch = random_sample(seed).batch
    rewards, groups = batch.reward_B.tolist(), batch.group_B.tolist()
    expected = []
    for i, reward in enumerate(rewards):
        group = peers(rewards, groups, i)
        if not math.isfinite(reward) or len(set(group)) < 2:
            expected.append(0.0)
            continue
        spread = group if scale == "std" else [r for r in rewards if math.isfinite(r)]
        expected.append((reward - sum(group) / len(group)) / (deviation(spread, correction) + 1e-6))
    adv_B = group_advantage(batch.reward_B, batch.group_B, scale=scale, correction=correction)
    torch.testing.assert_close(adv_B, torch.tensor(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_rloo_is_the_reward_minus_the_mean_of_the_others(seed: int) -> None:
    batch = random_sample(seed).batch
    rewards, groups = batch.reward_B.tolist(), batch.group_B.tolist()
    expected = []
    for i, reward in enumerate(rewards):
        others = [r for j, r in enumerate(rewards) if j != i and groups[j] == groups[i] and math.isfinite(r)]
        expected.append(reward - sum(others) / len(others) if others and math.isfinite(reward) else 0.0)
    adv_B = rloo_advantage(batch.reward_B, batch.group_B)
    torch.testing.assert_close(adv_B, torch.tensor(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_pass_at_k_credits_the_best_alone_with_its_lead_over_the_second(seed: int) -> None:
    batch = random_sample(seed).batch
    reward_B = batch.reward_B + torch.randn(13, generator=torch.Generator().manual_seed(seed)) * 0.01
    rewards, groups = reward_B.tolist(), batch.group_B.tolist()
    expected = []
    for i, reward in enumerate(rewards):
        ranked = sorted(peers(rewards, groups, i), reverse=True)
        leads = len(ranked) >= 2 and reward == ranked[0]
        expected.append((ranked[0] - ranked[1]) / (deviation(ranked) + 1e-6) if leads else 0.0)
    adv_B = pass_at_k_advantage(reward_B, batch.group_B)
    torch.testing.assert_close(adv_B, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert adv_B.count_nonzero() == 3


@pytest.mark.parametrize("seed", SEEDS)
def test_whiten_has_mean_0_and_deviation_1_over_valid_tokens(seed: int) -> None:
    sample = random_sample(seed)
    mask_BT = sample.batch.mask_BT
    noisy_BT = torch.where(mask_BT.bool(), sample.logp_old_BT, math.nan)
    assert_rows(whiten(noisy_BT, mask_BT), mask_BT, loop_whiten(valid(noisy_BT, mask_BT)))


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_reinforce_plus_plus_is_the_discounted_sum_of_later_rewards_whitened(seed: int, gamma: float) -> None:
    reward_BT, mask_BT, usable = token_rewards(seed, holes=False)
    rows = valid(reward_BT, mask_BT)
    sums = [[sum(gamma**k * r for k, r in enumerate(row[t:])) for t in range(len(row))] for row in rows]
    white = iter(loop_whiten([row for row, fine in zip(sums, usable, strict=True) if fine]))
    expected = [next(white) if fine else [0.0] * len(row) for row, fine in zip(sums, usable, strict=True)]
    assert_rows(reinforce_plus_plus_advantage(reward_BT, mask_BT, gamma=gamma), mask_BT, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_reinforce_plus_plus_baseline_is_the_centred_reward_of_every_token_whitened(seed: int) -> None:
    batch = random_sample(seed).batch
    rewards, groups, mask_BT = batch.reward_B.tolist(), batch.group_B.tolist(), batch.mask_BT
    centred: list[float | None] = []
    for i, reward in enumerate(rewards):
        group = peers(rewards, groups, i)
        centred.append(reward - sum(group) / len(group) if math.isfinite(reward) and len(group) > 1 else None)
    lengths = [int(length) for length in mask_BT.sum(dim=1)]
    spread = [[c] * n for c, n in zip(centred, lengths, strict=True) if c is not None]
    white = iter(loop_whiten(spread))
    expected = [[0.0] * n if c is None else next(white) for c, n in zip(centred, lengths, strict=True)]
    assert centred.count(None) == 2  # the failed sample and the sample without a peer
    adv_BT = reinforce_plus_plus_baseline_advantage(batch.reward_B, batch.group_B, mask_BT)
    assert_rows(adv_BT, mask_BT, expected)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.95), (1.0, 0.0), (0.9, 0.5)])
@pytest.mark.parametrize("holes", [False, True], ids=["ragged", "masked_inside"])
@pytest.mark.parametrize("seed", SEEDS)
def test_gae_is_the_discounted_sum_of_later_errors_as_if_masked_tokens_were_not_there(
    seed: int, holes: bool, gamma: float, lam: float
) -> None:
    reward_BT, mask_BT, usable = token_rewards(seed, holes=holes)
    value_BT = torch.randn(mask_BT.shape, generator=torch.Generator().manual_seed(seed + 100))
    raw, returns = [], []
    for rewards, values, fine in zip(valid(reward_BT, mask_BT), valid(value_BT, mask_BT), usable, strict=True):
        after = [*values, 0.0][1:]
        deltas = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
        sums = [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]
        raw.append(sums if fine else [])
        returns.append([a + v for a, v in zip(sums, values, strict=True)] if fine else values)
    white = [row if fine else [0.0] * len(r) for row, fine, r in zip(loop_whiten(raw), usable, returns, strict=True)]
    adv_BT, return_BT = gae(reward_BT, value_BT, mask_BT, gamma=gamma, lam=lam)
    assert_rows(adv_BT, mask_BT, white)
    assert_rows(return_BT, mask_BT, returns)
