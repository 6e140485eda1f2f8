"""Advantage estimators beside GRPO's: RLOO, PASS@k, REINFORCE++ and its baseline variant, and GAE.

Every estimator follows the same rules. Groups are found by id. A reward that is not finite is a failed sample: it gets
0 and stays out of all statistics; so does a sample without a peer where peers are compared. Padding is 0.

Shapes: B sequences, T response tokens (padded); mask_BT is 1 on generated tokens, the end of sequence included.
All results are float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cepo.algo.core import group_advantage, peer_groups

WHITEN_EPS = 1e-8
"""Added to the variance when whitening, as in verl."""


def rloo_advantage(reward_B: Tensor, group_B: Tensor) -> Tensor:
    """RLOO (arXiv:2402.14740): the reward minus the mean of the group's other rewards, adv_B.

    It is G/(G-1) times the centred reward, so equal rewards are exactly 0 as in `group_advantage`.
    """
    adv_B = group_advantage(reward_B, group_B, scale="none")
    for member_B in peer_groups(reward_B, group_B):
        size = int(member_B.sum())
        adv_B[member_B] *= size / (size - 1)
    return adv_B


def pass_at_k_advantage(reward_B: Tensor, group_B: Tensor, *, eps: float = 1e-6) -> Tensor:
    """PASS@k GRPO (EasyR1's `grpo_passk`): the best of a group gets (best - second) / (std + eps), the others 0; adv_B.

    Two that share the best reward get 0: neither was needed. The deviation is the unbiased one.
    """
    reward_B = reward_B.float()
    adv_B = torch.zeros_like(reward_B)
    for member_B in peer_groups(reward_B, group_B):
        reward_G = reward_B[member_B]
        (best, second), order = reward_G.topk(2)
        adv_B[member_B.nonzero()[order[0], 0]] = (best - second) / (reward_G.std() + eps)
    return adv_B


def terminal_reward(reward_B: Tensor, mask_BT: Tensor) -> Tensor:
    """token_reward_BT with each reward on its sequence's last token; an empty response has no place for one."""
    valid_BT = mask_BT.bool()
    seen_BT = valid_BT.cumsum(dim=1)
    last_BT = valid_BT & (seen_BT == valid_BT.sum(dim=1, keepdim=True))
    return torch.where(last_BT, reward_B.float()[:, None], 0.0)


def return_to_go(token_reward_BT: Tensor, mask_BT: Tensor, *, gamma: float) -> Tensor:
    """G_t = R_t + gamma G_{t+1} over response tokens, starting again from 0 at a masked position; return_BT."""
    valid_BT = mask_BT.bool()
    return_BT = torch.zeros_like(token_reward_BT, dtype=torch.float32)
    running_B = return_BT.new_zeros(len(return_BT))
    for t in reversed(range(valid_BT.shape[1])):
        running_B = torch.where(valid_BT[:, t], token_reward_BT[:, t] + gamma * running_B, 0.0)
        return_BT[:, t] = running_B
    return return_BT


def whiten(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(value - mean) / sqrt(unbiased variance + 1e-8) over the valid tokens of the batch, 0 elsewhere.

    Values that are all equal, one value alone, and no value at all give exactly 0.
    """
    valid_BT = mask_BT.bool()
    value_N = value_BT[valid_BT].float()
    if value_N.numel() == 0 or value_N.max() == value_N.min():
        return torch.zeros_like(value_BT, dtype=torch.float32)
    white_BT = (value_BT.float() - value_N.mean()) * torch.rsqrt(value_N.var() + WHITEN_EPS)
    return torch.where(valid_BT, white_BT, 0.0)


def reinforce_plus_plus_advantage(token_reward_BT: Tensor, mask_BT: Tensor, *, gamma: float) -> Tensor:
    """REINFORCE++ (arXiv:2501.03262): the return-to-go, whitened over all valid tokens of the batch; adv_BT."""
    mask_BT = _usable(token_reward_BT, mask_BT)
    return whiten(return_to_go(token_reward_BT, mask_BT, gamma=gamma), mask_BT)


def reinforce_plus_plus_baseline_advantage(reward_B: Tensor, group_B: Tensor, mask_BT: Tensor) -> Tensor:
    """REINFORCE++ with a group baseline (verl): R - mean of the group on every token, then whitened; adv_BT.

    A group of equal rewards counts in the whitening, with 0, and so is not 0 afterwards.
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

    delta_t = R_t + gamma V_{t+1} - V_t; A_t = delta_t + gamma lam A_{t+1}; V and A pass masked positions unchanged.

    Args:
        token_reward_BT: rewards per token, an outcome on the last one (`terminal_reward`).
        value_BT: the critic's values before the update.

    Returns:
        adv_BT whitened, and return_BT = A + V from before the whitening. A failed sample's return is its own value.
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
    """The mask without the sequences that have a reward which is not finite."""
    valid_BT = mask_BT.bool()
    failed_B1 = (valid_BT & ~token_reward_BT.isfinite()).any(dim=1, keepdim=True)
    return valid_BT & ~failed_B1
