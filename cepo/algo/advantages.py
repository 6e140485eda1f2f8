"""Advantage estimators other than GRPO's: RLOO, PASS@k, REINFORCE++ and its baseline variant, and GAE.

All estimators follow the same rules. Groups are found by id. A sample whose reward is not finite has failed: its
advantage is 0, and it is left out of all statistics. The same holds for a sample without peers, if the estimator
compares peers. Padding is 0.

Shapes: B sequences, T response tokens (padded). mask_BT is 1 on sampled tokens, including the end of each turn.
All results are float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cepo.algo.core import group_advantage, peer_groups

WHITEN_EPS = 1e-8
"""Added to the variance when whitening, as in verl."""


def rloo_advantage(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """RLOO (arXiv:2402.14740): adv_B, the reward minus the mean of the group's other rewards.

    It is G/(G-1) times the centred reward, so equal rewards are exactly 0 as in `group_advantage`.
    """
    adv_B = group_advantage(reward_B, group_B, scale="none")
    for member_B in peer_groups(reward_B, group_B):
        size = int(member_B.sum())
        adv_B[member_B] *= size / (size - 1)
    return adv_B


def pass_at_k_advantage(reward_B: Tensor, group_B: Tensor, *, eps: float = 1e-6) -> Tensor:
    """PASS@k GRPO (EasyR1's `grpo_passk`): adv_B. The best of a group gets (best - second) / (std + eps), others get 0.

    If two samples share the best reward, both get 0. The standard deviation is the unbiased one.
    """
    reward_B = reward_B.float()
    adv_B = torch.zeros_like(reward_B)
    for member_B in peer_groups(reward_B, group_B):
        reward_G = reward_B[member_B]
        (best, second), order = reward_G.topk(2)
        adv_B[member_B.nonzero()[order[0], 0]] = (best - second) / (reward_G.std() + eps)
    return adv_B


def terminal_reward(reward_B: Tensor, mask_BT: Tensor) -> Tensor:
    """token_reward_BT with the reward on the last token of each sequence; all 0 for an empty response."""
    valid_BT = mask_BT.bool()
    seen_BT = valid_BT.cumsum(dim=1)
    last_BT = valid_BT & (seen_BT == valid_BT.sum(dim=1, keepdim=True))
    return torch.where(last_BT, reward_B.float()[:, None], 0.0)


def return_to_go(token_reward_BT: Tensor, mask_BT: Tensor, *, gamma: float) -> Tensor:
    """return_BT: G_t = R_t + gamma G_{t+1}, with t + 1 the next token of the mask, and 0 at the other positions."""
    valid_BT = mask_BT.bool()
    return_BT = torch.zeros_like(token_reward_BT, dtype=torch.float32)
    running_B = return_BT.new_zeros(len(return_BT))
    for t in reversed(range(valid_BT.shape[1])):
        running_B = torch.where(valid_BT[:, t], token_reward_BT[:, t] + gamma * running_B, running_B)
        return_BT[:, t] = torch.where(valid_BT[:, t], running_B, 0.0)
    return return_BT


def whiten(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(value - mean) / sqrt(unbiased variance + 1e-8) over the valid tokens of the batch, and 0 on other tokens.

    The result is exactly 0 if all values are equal, or if there are fewer than two.
    """
    valid_BT = mask_BT.bool()
    value_N = value_BT[valid_BT].float()
    if value_N.numel() == 0 or value_N.max() == value_N.min():
        return torch.zeros_like(value_BT, dtype=torch.float32)
    white_BT = (value_BT.float() - value_N.mean()) * torch.rsqrt(value_N.var() + WHITEN_EPS)
    return torch.where(valid_BT, white_BT, 0.0)


def reinforce_plus_plus_advantage(token_reward_BT: Tensor, mask_BT: Tensor, *, gamma: float) -> Tensor:
    """REINFORCE++ (arXiv:2501.03262): adv_BT, the return-to-go whitened over all valid tokens of the batch."""
    mask_BT = _usable(token_reward_BT, mask_BT)
    return whiten(return_to_go(token_reward_BT, mask_BT, gamma=gamma), mask_BT)


def reinforce_plus_plus_baseline_advantage(reward_B: Tensor, group_B: Tensor, mask_BT: Tensor) -> Tensor:
    """REINFORCE++ with a group baseline (verl): adv_BT, R - mean of the group on every token, then whitened.

    A group of equal rewards takes part in the whitening with 0, so its advantages are not 0 afterwards.
    """
    compared_B = torch.zeros_like(reward_B, dtype=torch.bool)
    for member_B in peer_groups(reward_B, group_B):
        compared_B |= member_B
    centred_B = group_advantage(reward_B, group_B, scale="none")
    return whiten(centred_B[:, None].expand(mask_BT.shape), mask_BT.bool() & compared_B[:, None])


@torch.no_grad()
def gae(
    token_reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv:1506.02438) in verl's recursion, for PPO.

    delta_t = R_t + gamma V_{t+1} - V_t; A_t = delta_t + gamma lam A_{t+1}. V and A skip masked positions.

    Args:
        token_reward_BT: rewards per token; the outcome is on the last token (`terminal_reward`).
        value_BT: the critic's values before the update.

    Returns:
        adv_BT, whitened, and return_BT = A + V before the whitening. The return of a failed sample is its value.
    """
    usable_BT = _usable(token_reward_BT, mask_BT)
    adv_BT = torch.zeros_like(value_BT, dtype=torch.float32)
    next_adv_B = next_value_B = adv_BT.new_zeros(len(adv_BT))
    for t in reversed(range(mask_BT.shape[1])):
        delta_B = token_reward_BT[:, t] + gamma * next_value_B - value_BT[:, t]
        next_adv_B = torch.where(usable_BT[:, t], delta_B + gamma * lam * next_adv_B, next_adv_B)
        next_value_B = torch.where(usable_BT[:, t], value_BT[:, t].float(), next_value_B)
        adv_BT[:, t] = torch.where(usable_BT[:, t], next_adv_B, 0.0)
    return whiten(adv_BT, usable_BT), torch.where(mask_BT.bool(), adv_BT + value_BT, 0.0)


def _usable(token_reward_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mask without the sequences that have a non-finite reward."""
    valid_BT = mask_BT.bool()
    failed_B1 = (valid_BT & ~token_reward_BT.isfinite()).any(dim=1, keepdim=True)
    return valid_BT & ~failed_B1
