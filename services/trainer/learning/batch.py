"""Groups become tensors. Shapes and alignment are checked by the contracts; nothing downstream checks again."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.messages.arrays import Float32Array
from cepo.messages.groups import Ask, ContextName, EvidencedGroup, EvidenceReason, EvidenceRow, FinishReason, FollowUp

NOT_MEASURED = EvidenceRow(
    logps=Float32Array(), applicable=False, context=ContextName.PLAIN, reason=EvidenceReason.ASKED
)


def pack(groups: Sequence[EvidencedGroup]) -> TrainBatch:
    """A batch of B sequences in group order, follow-ups folded into the groups they were made from.

    Fresh responses to the same prompt, or to a prefix of one response, become a value of that state. A response to
    another prompt, a privileged one, becomes a demonstration: a sequence of its own under the prompt of its group.

    A sequence without a verdict has the reward NaN, which no statistic counts, and an empty mask, so that no
    denominator does.

    Args:
        groups: at least one that is no follow-up.
    """
    prompts = {group.task.index: group for group in groups if group.task.origin is None}
    continuations = _follow_ups(groups, FollowUp.CONTINUATION)
    demonstrations = _follow_ups(groups, FollowUp.DEMONSTRATION)
    rows = [*prompts.values(), *demonstrations]
    completions = [c for group in rows for c in group.scored.rollout.completions]
    verdicts = [v for group in rows for v in group.scored.verdicts]
    size_G = torch.tensor([len(group.scored.verdicts) for group in rows])
    shown_G = torch.tensor([group.task.origin is not None for group in rows])
    demonstration_B = shown_G.repeat_interleave(size_G)
    mask_BT = _pad([[float(not v.failed)] * len(c.token_ids) for c, v in zip(completions, verdicts, strict=True)])
    reward_B = torch.tensor([math.nan if v.failed else v.reward for v in verdicts])
    return TrainBatch(
        prompt_ids=[_prompt(group, prompts) for group in rows for _ in group.scored.verdicts],
        response_ids=[tuple(c.token_ids) for c in completions],
        mask_BT=mask_BT,
        reward_B=torch.where(demonstration_B, math.nan, reward_B),
        accuracy_B=torch.tensor([v.accuracy for v in verdicts]),
        group_B=torch.arange(len(rows)).repeat_interleave(size_G),
        rollout_logp_BT=_pad([tuple(c.logps) for c in completions], mask_BT.shape[1]),
        max_tokens=rows[0].task.sampling.max_tokens,
        truncated_B=torch.tensor([c.finish_reason is FinishReason.LENGTH for c in completions]),
        demonstration_B=demonstration_B,
        images=[group.task.images for group in rows for _ in group.scored.verdicts],
        evidence={ask: _measured(ask, rows, mask_BT.shape[1]) for ask in _asks(rows)},
        step_ends=[c.step_ends for c in completions],
        step_rewards=[v.step_rewards for v in verdicts],
        prefix_value_BT1=_prefix_values(rows, continuations, mask_BT) if continuations else None,
        step=rows[0].task.step,
    )


def _follow_ups(groups: Iterable[EvidencedGroup], kind: FollowUp) -> list[EvidencedGroup]:
    return [group for group in groups if group.task.origin is not None and group.task.origin.kind is kind]


def _prompt(group: EvidencedGroup, prompts: dict[int, EvidencedGroup]) -> tuple[int, ...]:
    origin = group.task.origin
    return tuple((group if origin is None else prompts[origin.index]).scored.rollout.prompt_token_ids)


def _asks(groups: Iterable[EvidencedGroup]) -> list[Ask]:
    return list(dict.fromkeys(evidence.ask for group in groups for evidence in group.evidence))


def _measured(ask: Ask, groups: Sequence[EvidencedGroup], width: int) -> EvidenceTensors:
    rows = [row for group in groups for row in _rows(ask, group)]
    applicable_B = torch.tensor([row.applicable for row in rows])
    top_ids_BTk = top_logp_BTk = pooled_BD = None
    if any(row.top_ids for row in rows):
        top_ids_BTk = _pad_top(rows, [row.top_ids.data for row in rows], width, torch.int32).long()
        top_logp_BTk = _pad_top(rows, [row.top_logps.data for row in rows], width, torch.float32)
    if units := max((len(row.pooled) for row in rows), default=0):
        pooled_BD = torch.tensor([tuple(row.pooled) or (0.0,) * units for row in rows])
    substitute_B = torch.tensor([row.applicable and row.reason is not EvidenceReason.ASKED for row in rows])
    logp_BT = _pad([tuple(row.logps) for row in rows], width)
    return EvidenceTensors(logp_BT, applicable_B, top_ids_BTk, top_logp_BTk, pooled_BD, substitute_B)


def _rows(ask: Ask, group: EvidencedGroup) -> Sequence[EvidenceRow]:
    for evidence in group.evidence:
        if evidence.ask == ask:
            return evidence.rows
    return [NOT_MEASURED] * len(group.scored.verdicts)


def _prefix_values(
    groups: Sequence[EvidencedGroup], continuations: Iterable[EvidencedGroup], mask_BT: Tensor
) -> Tensor:
    """Mean reward of the continuations of each prefix, [B, T + 1], not a number elsewhere."""
    rows_of, at = {}, 0
    for group in groups:
        if group.task.origin is None:
            rows_of[group.task.index] = range(at, at + len(group.scored.verdicts))
        at += len(group.scored.verdicts)
    found: dict[tuple[int, int], list[float]] = defaultdict(list)
    for group in continuations:
        origin = group.task.origin
        assert origin is not None
        rows = rows_of[origin.index]
        for row in rows if origin.sample < 0 else [rows[origin.sample]]:
            found[row, len(group.task.prefix)] += [v.reward for v in group.scored.verdicts if not v.failed]
    value_BT1 = torch.full((mask_BT.shape[0], mask_BT.shape[1] + 1), math.nan)
    for (row, length), rewards in found.items():
        value_BT1[row, length] = sum(rewards) / len(rewards) if rewards else math.nan
    return value_BT1


def _pad(rows: Sequence[Sequence[float]], width: int = 0) -> Tensor:
    padded_BT = pad_sequence([torch.tensor(row, dtype=torch.float32) for row in rows], batch_first=True)
    return torch.nn.functional.pad(padded_BT, (0, max(0, width - padded_BT.shape[1])))


def _pad_top(rows: Sequence[EvidenceRow], columns: Sequence[bytes], width: int, dtype: torch.dtype) -> Tensor:
    """[B, T, k] of each row's T x k numbers of four bytes, little-endian."""
    k = max(len(column) // (4 * len(row.logps)) for row, column in zip(rows, columns, strict=True) if row.logps)
    padded_BTk = torch.zeros(len(rows), width, k, dtype=dtype)
    for at, column in enumerate(columns):
        if column:
            padded_BTk[at, : len(rows[at].logps)] = torch.frombuffer(bytearray(column), dtype=dtype).view(-1, k)
    return padded_BTk
