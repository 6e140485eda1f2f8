"""Identities of the advantage estimators, and degenerate batches.

Shapes: B sequences, T response tokens (padded).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cepo.algo.advantages import (
    gae,
    pass_at_k_advantage,
    reinforce_plus_plus_advantage,
    reinforce_plus_plus_baseline_advantage,
    return_to_go,
    rloo_advantage,
    terminal_reward,
    whiten,
)
from cepo.algo.core import group_advantage
from tests.parity.support import random_sample

Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of rewards [B], groups [B] and a mask [B, T] that returns the advantages [B, T]."""


def spread(estimator: Callable[[Tensor, Tensor], Tensor]) -> Estimator:
    return lambda reward_B, group_B, mask_BT: estimator(reward_B, group_B)[:, None] * mask_BT


GROUPED: dict[str, Estimator] = {
    "grpo": spread(group_advantage),
    "grpo_batch_std": spread(lambda r, g: group_advantage(r, g, scale="batch-std")),
    "grpo_biased_std": spread(lambda r, g: group_advantage(r, g, correction=0)),
    "dr_grpo": spread(lambda r, g: group_advantage(r, g, scale="none")),
    "rloo": spread(rloo_advantage),
    "pass_at_k": spread(pass_at_k_advantage),
}
ESTIMATORS: dict[str, Estimator] = {
    **GROUPED,
    "reinforce++": lambda r, g, m: reinforce_plus_plus_advantage(terminal_reward(r, m), m, gamma=1.0),
    "reinforce++_baseline": reinforce_plus_plus_baseline_advantage,
    "gae": lambda r, g, m: gae(terminal_reward(r, m), torch.zeros_like(m), m, gamma=1.0, lam=0.9)[0],
}


@pytest.mark.parametrize("size", [2, 3, 8])
def test_rloo_is_the_centred_reward_times_size_over_size_minus_1(size: int) -> None:
    reward_B, group_B = torch.rand(size, generator=torch.Generator().manual_seed(0)), torch.zeros(size)
    expected_B = (reward_B - reward_B.mean()) * size / (size - 1)
    torch.testing.assert_close(rloo_advantage(reward_B, group_B), expected_B)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_permuting_the_batch_permutes_the_advantages(name: str) -> None:
    batch, order = random_sample(3).batch, torch.randperm(13, generator=torch.Generator().manual_seed(3))
    tensors = batch.reward_B, batch.group_B, batch.mask_BT
    moved_BT = ESTIMATORS[name](*(tensor[order] for tensor in tensors))
    torch.testing.assert_close(moved_BT, ESTIMATORS[name](*tensors)[order], rtol=1e-5, atol=1e-6)
    assert moved_BT.any()


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_gae_with_lambda_1_returns_the_rewards_to_go_whatever_the_critic_says(gamma: float) -> None:
    mask_BT = random_sample(0).batch.mask_BT
    reward_BT, value_BT = torch.randn(2, 13, 7, generator=torch.Generator().manual_seed(0))
    _, return_BT = gae(reward_BT, value_BT, mask_BT, gamma=gamma, lam=1.0)
    torch.testing.assert_close(return_BT, return_to_go(reward_BT, mask_BT, gamma=gamma), rtol=1e-4, atol=1e-5)


def test_gae_with_lambda_0_returns_the_reward_and_the_next_value() -> None:
    reward_BT, value_BT = torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[0.3, 0.2, 0.1]])
    _, return_BT = gae(reward_BT, value_BT, torch.ones(1, 3), gamma=0.5, lam=0.0)
    torch.testing.assert_close(return_BT, torch.tensor([[0.1, 0.55, 1.0]]))


def test_reinforce_plus_plus_without_discount_credits_every_token_of_a_response_alike() -> None:
    mask_BT = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    adv_BT = reinforce_plus_plus_advantage(terminal_reward(torch.tensor([1.0, 0.0]), mask_BT), mask_BT, gamma=1.0)
    assert adv_BT[0].unique().numel() == adv_BT[1, :2].unique().numel() == 1
    assert adv_BT[0, 0] > 0 > adv_BT[1, 0]
    assert adv_BT[1, 2] == 0


def test_two_that_share_the_best_reward_have_no_lead_at_k() -> None:
    adv_B = pass_at_k_advantage(torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3))
    assert torch.equal(adv_B, torch.zeros(3))


@pytest.mark.parametrize(
    "reward", [0.0, 0.1, 0.1 + 0.2, 1.0], ids=["all_wrong", "all_formatted", "equal", "all_correct"]
)
@pytest.mark.parametrize("name", [*GROUPED, "reinforce++", "reinforce++_baseline"])
def test_equal_rewards_give_exactly_zero(name: str, reward: float) -> None:
    adv_BT = ESTIMATORS[name](torch.full((7,), reward), torch.tensor([0, 0, 0, 1, 1, 1, 1]), torch.ones(7, 3))
    assert torch.equal(adv_BT, torch.zeros(7, 3))


def test_an_unknown_scale_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown scale 'batch'"):
        group_advantage(torch.ones(2), torch.zeros(2), scale="batch")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*GROUPED, "reinforce++_baseline"])
def test_a_singleton_gets_zero_and_the_others_are_as_if_it_were_not_there(name: str) -> None:
    reward_B, group_B, mask_BT = torch.tensor([1.0, 0.0, 0.1, 0.3]), torch.tensor([4, 4, 4, 9]), torch.ones(4, 3)
    with_BT = ESTIMATORS[name](reward_B, group_B, mask_BT)
    assert not with_BT[3].any()
    if name != "grpo_batch_std":  # its deviation is over all rewards of the batch
        assert torch.equal(with_BT[:3], ESTIMATORS[name](reward_B[:3], group_B[:3], mask_BT[:3]))


@pytest.mark.parametrize("failed", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_failed_reward_gets_zero_and_leaves_the_others_as_if_it_were_not_there(name: str, failed: float) -> None:
    reward_B, group_B = torch.tensor([1.0, failed, 0.0, 0.1]), torch.zeros(4)
    mask_BT = torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    fine = torch.tensor([0, 2, 3])
    with_BT = ESTIMATORS[name](reward_B, group_B, mask_BT)
    assert not with_BT[1].any()
    assert torch.equal(with_BT[fine], ESTIMATORS[name](reward_B[fine], group_B[fine], mask_BT[fine]))


def test_the_return_of_a_failed_sample_is_its_own_value_so_that_the_critic_learns_nothing() -> None:
    value_BT, mask_BT = torch.tensor([[0.3, 0.2, 9.0], [0.1, 0.2, 0.3]]), torch.tensor([[1.0, 1, 0], [1, 1, 1]])
    reward_BT = terminal_reward(torch.tensor([math.nan, 1.0]), mask_BT)
    _, return_BT = gae(reward_BT, value_BT, mask_BT, gamma=1.0, lam=0.9)
    assert torch.equal(return_BT[0], value_BT[0] * mask_BT[0])
    assert (return_BT[1] != value_BT[1]).all()


def test_what_padding_holds_cannot_matter() -> None:
    mask_BT = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    reward_BT, value_BT = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    noisy = [torch.where(mask_BT.bool(), tensor_BT, math.nan) for tensor_BT in (reward_BT, value_BT)]
    expected = gae(reward_BT, value_BT, mask_BT, gamma=1.0, lam=0.9)
    assert all(map(torch.equal, gae(noisy[0], noisy[1], mask_BT, gamma=1.0, lam=0.9), expected))
    noisy_adv_BT = reinforce_plus_plus_advantage(noisy[0], mask_BT, gamma=0.9)
    assert torch.equal(noisy_adv_BT, reinforce_plus_plus_advantage(reward_BT, mask_BT, gamma=0.9))


@pytest.mark.parametrize("name", GROUPED)
def test_the_reward_of_an_empty_response_stays_in_the_group_statistics(name: str) -> None:
    reward_B, group_B, mask_BT = torch.tensor([1.0, 0.5, 0.0]), torch.zeros(3), torch.tensor([[1.0], [1.0], [0.0]])
    with_BT = ESTIMATORS[name](reward_B, group_B, mask_BT)
    without_BT = ESTIMATORS[name](reward_B[:2], group_B[:2], mask_BT[:2])
    assert with_BT[2] == 0
    assert not torch.equal(with_BT[:2], without_BT)


@pytest.mark.parametrize("name", ["reinforce++", "reinforce++_baseline", "gae"])
def test_an_empty_response_has_no_token_in_the_whitening(name: str) -> None:
    group_B, mask_BT = torch.zeros(3), torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    adv_BT = ESTIMATORS[name](torch.tensor([1.0, 0.0, 0.0]), group_B, mask_BT)
    assert not adv_BT[2].any()
    assert float(adv_BT[mask_BT.bool()].mean()) == pytest.approx(0, abs=1e-6)
    assert float(adv_BT[mask_BT.bool()].std()) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("width", [3, 0])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_batch_masked_whole_has_advantage_zero(name: str, width: int) -> None:
    adv_BT = ESTIMATORS[name](torch.tensor([1.0, 0.0]), torch.zeros(2), torch.zeros(2, width))
    assert torch.equal(adv_BT, torch.zeros(2, width))


def test_whitening_one_token_alone_gives_zero() -> None:
    assert torch.equal(whiten(torch.tensor([[3.0, 5.0]]), torch.tensor([[0.0, 1.0]])), torch.zeros(1, 2))
