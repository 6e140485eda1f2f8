"""Helpers of the algorithm tests: golden files, random ragged batches, and the equations as plain loops.

Shapes: B sequences, T response tokens (padded). The loops take and return nested lists of Python floats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cepo.algo.batch import EvidenceTensors, Rule, TrainBatch
from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.rlsd import Rlsd

GOLDEN = Path(__file__).parent / "golden"
AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "dr-grpo")

OTHERS = (Cepo().asks[1], Cepo(no_negative="grpo").asks[1], Cepo(exclude_self=True).asks[1], Rlsd().asks[1])
"""The asks of RLSD's and CEPO's denominators."""

Rows = Sequence[Sequence[float]]


def golden(name: str) -> dict[str, Any]:
    """Loads a golden file: inputs and outputs of the official implementation that its `source` names."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def tensor(rows: Any) -> Tensor:
    """Returns nested lists as a float32 tensor; the strings "nan", "inf" and "-inf" are those numbers."""
    return torch.tensor(_numbers(rows), dtype=torch.float32)


def _numbers(rows: Any) -> Any:
    return [_numbers(row) for row in rows] if isinstance(rows, list) else float(rows)


@dataclass(frozen=True)
class Sample:
    """A batch, and the log-probs of its tokens under the current weights and at the start of the step, [B, T]."""

    batch: TrainBatch
    logp_BT: Tensor
    logp_old_BT: Tensor


def random_sample(seed: int, *, width: int = 7) -> Sample:
    """Returns 13 sequences in shuffled order: a group with a failed reward, a mixed group, a group of equal rewards
    of 0.1, and a singleton.

    One response is empty and one has full width. Log-ratios reach both clips, the dual clip and the bound of 20.
    """
    random = torch.Generator().manual_seed(seed)
    reward = [1.0, 0.0, math.nan, 0.1, 1.0, 0.9, 0.0, 0.1, 0.1, 0.1, 0.1, 0.1, 1.0]
    group = [7] * 4 + [3] * 4 + [11] * 4 + [5]
    order = torch.randperm(len(group), generator=random)
    length_B = torch.randint(1, width + 1, (len(group),), generator=random)
    length_B[0], length_B[5] = 0, width
    mask_BT = (torch.arange(width) < length_B[order][:, None]).float()

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(mask_BT.shape, generator=random) * (high - low) + low

    old_BT = uniform(-3, 0)
    logp_BT = old_BT + uniform(-1, 1)
    logp_BT = torch.where(uniform(0, 1) < 0.1, old_BT + uniform(-30, 30), logp_BT)
    reward_B = torch.tensor(reward)[order]
    batch = make_batch(
        mask_BT,
        reward_B,
        torch.tensor(group)[order],
        rollout_logp_BT=(old_BT + uniform(-0.5, 0.5)) * mask_BT,
        evidence=(uniform(-3, 0) * mask_BT, uniform(-3, 0) * mask_BT),
    )
    return Sample(batch, logp_BT * mask_BT, old_BT * mask_BT)


def make_batch(
    mask_BT: Tensor,
    reward_B: Tensor,
    group_B: Tensor,
    *,
    rollout_logp_BT: Tensor | None = None,
    evidence: Sequence[Tensor] = (),
    measured_B: Tensor | None = None,
    max_tokens: int | None = None,
) -> TrainBatch:
    """Returns a batch in which a reward of at least 0.5 is a correct answer.

    Args:
        evidence: log-probs [B, T] under the numerator's and the denominator's context, for RLSD and for CEPO.
        measured_B: which sequences have a denominator; all by default.
        max_tokens: the sampling limit; the width of the mask by default.
    """
    everywhere_B = torch.ones(len(reward_B), dtype=torch.bool)
    measured = {}
    if evidence:
        numerator, denominator = evidence
        measured = {
            ask: EvidenceTensors(denominator, everywhere_B if measured_B is None else measured_B) for ask in OTHERS
        }
        measured[Cepo().asks[0]] = EvidenceTensors(numerator, everywhere_B)
    return TrainBatch(
        prompt_ids=[(1,)] * len(reward_B),
        response_ids=[(2,) * int(length) for length in mask_BT.sum(dim=1)],
        mask_BT=mask_BT,
        reward_B=reward_B,
        accuracy_B=(reward_B >= 0.5).float(),
        group_B=group_B,
        rollout_logp_BT=torch.zeros_like(mask_BT) if rollout_logp_BT is None else rollout_logp_BT,
        max_tokens=max_tokens or max(1, mask_BT.shape[1]),
        truncated_B=~everywhere_B,
        demonstration_B=~everywhere_B,
        evidence=measured,
        step_ends=[(int(length),) for length in mask_BT.sum(dim=1)],
    )


def both(batch: TrainBatch) -> tuple[Tensor, Tensor]:
    """Returns the log-probs of the numerator and of the denominator, each [B, T]."""
    numerator, denominator = (batch.evidence[ask].logp_BT for ask in Cepo().asks)
    return numerator, denominator


@dataclass(frozen=True)
class Scored:
    """A student with log-probs of the sampled tokens only, without distributions."""

    logp_BT: Tensor

    def per_token(self, rule: Rule, *inputs_BT: Tensor) -> Tensor:
        raise AssertionError("this student has no distributions, so per_token must not be called")


@dataclass(frozen=True)
class Distributed:
    """A student with logits over the whole vocabulary."""

    logits_BTV: Tensor
    target_BT: Tensor
    mask_BT: Tensor

    @property
    def logp_BT(self) -> Tensor:
        logp_BTV = self.logits_BTV.log_softmax(dim=2)
        return logp_BTV.gather(2, self.target_BT[..., None]).squeeze(2) * self.mask_BT

    def per_token(self, rule: Rule, *inputs_BT: Tensor) -> Tensor:
        valid_BT = self.mask_BT.bool()
        value_N = rule(self.logits_BTV[valid_BT], self.target_BT[valid_BT], *(rows[valid_BT] for rows in inputs_BT))
        spread_BT = torch.zeros(*valid_BT.shape, *value_N.shape[1:], dtype=value_N.dtype)
        return spread_BT.index_put(valid_BT.nonzero(as_tuple=True), value_N)


def loop_group_advantage(
    rewards: Sequence[float], groups: Sequence[int], *, eps: float = 1e-6, scale: str = "std"
) -> list[float]:
    """Returns Eq. 1 sequence by sequence; a failed reward gets 0 and is left out of its group's statistics."""
    advantages = []
    for reward, group in zip(rewards, groups, strict=True):
        peers = [r for r, g in zip(rewards, groups, strict=True) if g == group and math.isfinite(r)]
        if not math.isfinite(reward) or len(set(peers)) < 2:
            advantages.append(0.0)
            continue
        mean = sum(peers) / len(peers)
        std = math.sqrt(sum((peer - mean) ** 2 for peer in peers) / (len(peers) - 1))
        advantages.append((reward - mean) / (std + eps) if scale == "std" else reward - mean)
    return advantages


def loop_reweight(
    advantages: Rows, numerators: Rows, denominators: Rows, lam: float, eps_w: float
) -> list[list[float]]:
    """Returns Eqs 4, 5 and 7 token by token, without a bound on the exponent."""
    return [
        [_credited(a, n, d, lam, eps_w) for a, n, d in zip(*rows, strict=True)]
        for rows in zip(advantages, numerators, denominators, strict=True)
    ]


def _credited(advantage: float, numerator: float, denominator: float, lam: float, eps_w: float) -> float:
    delta = numerator - denominator
    if advantage == 0:
        return 0.0
    if math.isnan(delta):
        return advantage
    exponent = math.copysign(1.0, advantage) * delta
    weight = math.inf if exponent > 700 else math.exp(exponent)
    return advantage * ((1 - lam) + lam * min(max(weight, 1 - eps_w), 1 + eps_w))


def loop_surrogate(
    logps: Rows, olds: Rows, advantages: Rows, *, low: float, high: float, dual: float | None
) -> tuple[list[list[float]], list[list[float]]]:
    """Returns -max(min(r A, clip(r) A), c A for A < 0), PPO's loss, and its derivative with respect to the log-prob."""
    losses, slopes = [], []
    for rows in zip(logps, olds, advantages, strict=True):
        terms = [_surrogate(*token, low=low, high=high, dual=dual) for token in zip(*rows, strict=True)]
        losses.append([loss for loss, _ in terms])
        slopes.append([slope for _, slope in terms])
    return losses, slopes


def _surrogate(
    logp: float, old: float, advantage: float, *, low: float, high: float, dual: float | None
) -> tuple[float, float]:
    ratio = math.exp(min(max(logp - old, -20.0), 20.0))
    objective = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    free = ratio <= 1 + high if advantage > 0 else ratio >= 1 - low
    if dual is not None and advantage < 0:
        objective = max(objective, dual * advantage)
        free = free and ratio <= dual
    free = free and abs(logp - old) <= 20
    return -objective, -advantage * ratio if free else 0.0


def loop_token_weights(
    masks: Rows, aggregation: str, *, tokens: int, sequences: int, max_tokens: int
) -> list[list[float]]:
    """Returns the weight of each token in the aggregated loss. Aggregations are linear, so the weights define them."""
    weights = []
    for mask in masks:
        factor = {
            "token-mean": 1 / max(tokens, 1),
            "seq-mean-token-mean": 1 / (max(sum(mask), 1) * max(sequences, 1)),
            "seq-mean-token-sum": 1 / max(sequences, 1),
            "seq-mean-token-sum-norm": 1 / max_tokens,
            "dr-grpo": 1 / (max(sequences, 1) * max_tokens),
        }[aggregation]
        weights.append([factor if valid else 0.0 for valid in mask])
    return weights


def loop_sum(weights: Rows, values: Rows) -> float:
    """Returns the sum of weight x value over all tokens with a nonzero weight."""
    pairs = [pair for rows in zip(weights, values, strict=True) for pair in zip(*rows, strict=True)]
    return math.fsum(weight * value for weight, value in pairs if weight)
