"""Credit for parts of a response: steps (VinePPO), segments (SPO-chain), edges of a tree (SPO-tree), process rewards.

A value is the mean reward of fresh continuations from a prefix. Shapes: B sequences, T response tokens, K steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Literal

import torch
from torch import Tensor

from cepo.algo.core import Scale

CONFIDENT = 0.9
"""SPO: a token with a larger probability is no decision."""

ProcessReward = Literal["score", "difference", "min"]


def step_advantages(rewards: Sequence[float], values: Sequence[float | None]) -> list[float]:
    """VinePPO's A_k = r_k + V(s_{k+1}) - V(s_k) of each step (arXiv:2410.01679).

    Args:
        rewards: one per step.
        values: V of the state before each step, or None if it was not estimated. The end of the response has value 0.
            A missing value is replaced by the reward of the step plus the next value, so that the step gets 0.

    Raises:
        ValueError: rewards and values differ in length.
    """
    advantages: list[float] = []
    after = 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        before = reward + after if value is None else value
        advantages.append(reward + after - before)
        after = before
    return advantages[::-1]


def cut_points(logp_T: Tensor, *, interval: int = 5, confident: float = CONFIDENT) -> list[int]:
    """SPO-chain's cut points: of the tokens with probability below `confident`, every interval-th (arXiv:2505.23564).

    A cut point is the index of the token before such a decision, after which the value is estimated; -1 is the end of
    the prompt.
    """
    return ((logp_T < math.log(confident)).nonzero().flatten() - 1)[::interval].tolist()


def decisions(logp_T: Tensor, *, confident: float = CONFIDENT) -> Tensor:
    """SPO's mask: False for tokens with a probability above `confident`, which have no loss. Any shape."""
    return logp_T <= math.log(confident)


def chain_advantages(
    logp_T: Tensor, cuts: Sequence[int], values: Sequence[float], score: float, *, confident: float = CONFIDENT
) -> Tensor:
    """SPO-chain's adv_T: for each segment, the value at its end minus the value at its start.

    A segment begins after a cut point and ends with the next one; the value at the end of the last segment is the
    score. Tokens up to the first cut point get 0, and so do tokens with `decisions` False. Without cut points all
    tokens get 0.

    Raises:
        ValueError: the number of values is not that of the cut points.
    """
    adv_T = torch.zeros_like(logp_T)
    for cut, before, after in zip(cuts, values, [*values, score][1:], strict=True):
        adv_T[cut + 1 :] = after - before  # later segments overwrite their part
    return adv_T * decisions(logp_T, confident=confident)


@dataclass(frozen=True)
class Node:
    """A prefix in a tree of continuations."""

    token_ids: tuple[int, ...]
    """The tokens after the parent's; those of the root are the prompt."""
    score: float = 0.0
    """The reward of a leaf; unused for inner nodes."""
    children: tuple[Node, ...] = ()
    source: tuple[int, int] = (0, 0)
    """Indices of the group, and of the response in it, from which the tokens were taken."""

    @property
    def value(self) -> float:
        """The mean of the children's values; for a leaf its score."""
        return fmean(child.value for child in self.children) if self.children else self.score


@dataclass(frozen=True)
class Edge:
    """A training row: the tokens of a node, given the tokens of all its ancestors."""

    prefix_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    advantage: float
    """Value of the child minus that of the parent; with scale "std", divided by the deviation of the siblings."""
    prover_advantage: float
    """The same for a prover that keeps the best of several attempts."""
    value: float
    is_leaf: bool
    source: tuple[int, int] = (0, 0)
    """`source` of the child."""


def tree_edges(root: Node, *, scale: Scale = "none", attempts: int = 4, eps: float = 1e-8) -> list[Edge]:
    """SPO-tree's training rows, depth first. Edges whose two advantages add up to 0 are dropped.

    The published configuration calls scale "none" rloo, and "std" (biased, plus eps) grpo.
    """

    def below(node: Node, prefix_ids: tuple[int, ...]) -> list[Edge]:
        prefix_ids += node.token_ids
        parent, edges = node.value, []
        divisor = pstdev(child.value for child in node.children) + eps if scale == "std" and node.children else 1.0
        for child in node.children:
            advantage = (child.value - parent) / divisor
            prover = (1.0 - parent) ** attempts - (1.0 - child.value) ** attempts
            if advantage + prover != 0:
                leaf = not child.children
                edges.append(Edge(prefix_ids, child.token_ids, advantage, prover, child.value, leaf, child.source))
            edges += below(child, prefix_ids)
        return edges

    return below(root, ())


def process_rewards(score_BK: Tensor, end_BK: Tensor, width: int, *, form: ProcessReward = "score") -> Tensor:
    """reward_BT: the scores of a process reward model, each on the last token of its step.

    Args:
        score_BK: one score per step.
        end_BK: index of each step's last token, padded on the right with -1.
        width: T.
        form: "score" p_k; "difference" p_k - p_{k-1}, with p_0 = 0; "min" the smallest score, at the last step.

    Raises:
        ValueError: the form is unknown.
    """
    step_BK = end_BK >= 0
    reward_BT = torch.zeros(len(score_BK), width, dtype=score_BK.dtype, device=score_BK.device)
    if not step_BK.any():
        return reward_BT
    match form:
        case "score":
            reward_BK = score_BK
        case "difference":
            reward_BK = score_BK.diff(dim=1, prepend=torch.zeros_like(score_BK[:, :1]))
        case "min":
            lowest_B = score_BK.masked_fill(~step_BK, torch.inf).amin(dim=1)
            last_BK = step_BK & (step_BK.cumsum(dim=1) == step_BK.sum(dim=1, keepdim=True))
            reward_BK = torch.where(last_BK, lowest_B[:, None], 0.0)
        case _:
            raise ValueError(f"unknown form {form!r}")
    return reward_BT.scatter_add(1, end_BK.clamp(min=0), torch.where(step_BK, reward_BK, 0.0))


def process_advantage_rewards(outcome_B: Tensor, before_BK: Tensor, after_BK: Tensor, *, alpha: float) -> Tensor:
    """PAV's effective reward of each step, outcome + alpha (prover's value after - before) (arXiv:2410.08146)."""
    return outcome_B[:, None] + alpha * (after_BK - before_BK)
