"""Groups become tensors. Shapes and alignment are checked by the contracts; nothing downstream checks again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cepo.algo.base import TrainBatch
from cepo.contracts import Ask, EvidencedGroup


def pack(groups: Sequence[EvidencedGroup], asks: Sequence[Ask]) -> TrainBatch:
    """A batch of B sequences in group order; a sequence any ask could not measure has no evidence at all.

    A sequence without a verdict has the reward NaN, which no statistic counts, and an empty mask, so that no
    denominator does.

    Args:
        groups: at least one.
        asks: what the algorithm asked for at this step; a group that skipped the teacher has none of it.
    """
    completions = [c for group in groups for c in group.scored.rollout.completions]
    verdicts = [v for group in groups for v in group.scored.verdicts]
    sizes = [len(group.scored.verdicts) for group in groups]
    mask_BT = _pad([[float(not v.failed)] * len(c.token_ids) for c, v in zip(completions, verdicts, strict=True)])
    measured_B = torch.tensor([flag for group in groups for flag in _measured(group)])
    evidence = tuple(
        _pad([row for group in groups for row in _logps(group, at)], like=mask_BT) * measured_B[:, None]
        for at in range(len(asks))
    )
    return TrainBatch(
        prompt_ids=[group.scored.rollout.prompt_token_ids for group in groups for _ in group.scored.verdicts],
        response_ids=[c.token_ids for c in completions],
        mask_BT=mask_BT,
        reward_B=torch.tensor([math.nan if v.failed else v.reward for v in verdicts]),
        accuracy_B=torch.tensor([v.accuracy for v in verdicts]),
        group_B=torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(sizes)),
        rollout_logp_BT=_pad([c.logps for c in completions]),
        evidence=evidence,
        measured_B=measured_B,
    )


def select(batch: TrainBatch, rows: Sequence[int]) -> TrainBatch:
    """The chosen sequences, cut to their own longest response."""
    index = torch.tensor(rows)
    width = max((len(batch.response_ids[row]) for row in rows), default=0)
    return TrainBatch(
        prompt_ids=[batch.prompt_ids[row] for row in rows],
        response_ids=[batch.response_ids[row] for row in rows],
        mask_BT=batch.mask_BT[index, :width],
        reward_B=batch.reward_B[index],
        accuracy_B=batch.accuracy_B[index],
        group_B=batch.group_B[index],
        rollout_logp_BT=batch.rollout_logp_BT[index, :width],
        evidence=tuple(logp_BT[index, :width] for logp_BT in batch.evidence),
        measured_B=batch.measured_B[index],
    )


def _pad(rows: Sequence[Sequence[float]], like: Tensor | None = None) -> Tensor:
    padded_BT = pad_sequence([torch.tensor(row, dtype=torch.float32) for row in rows], batch_first=True)
    if like is not None and padded_BT.shape[1] < like.shape[1]:
        padded_BT = torch.nn.functional.pad(padded_BT, (0, like.shape[1] - padded_BT.shape[1]))
    return padded_BT


def _measured(group: EvidencedGroup) -> list[bool]:
    if not group.evidence:
        return [False] * len(group.scored.verdicts)
    return [all(e.rows[i].applicable for e in group.evidence) for i in range(len(group.scored.verdicts))]


def _logps(group: EvidencedGroup, at: int) -> list[tuple[float, ...]]:
    if not group.evidence:
        return [()] * len(group.scored.verdicts)
    return [row.logps for row in group.evidence[at].rows]
