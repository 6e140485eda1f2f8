"""Groups become tensors. The messages have checked shapes and alignment; nothing after this file checks them again."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.messages.arrays import Float32Array
from cepo.messages.groups import (
    Ask,
    Completion,
    ContextName,
    EvidencedGroup,
    EvidenceReason,
    EvidenceRow,
    FinishReason,
    FollowUp,
    Verdict,
    Weights,
)
from cepo.messages.spans import sampled_mask

SAMPLED = Ask(context=ContextName.PLAIN, weights=Weights.POLICY)
"""Measures the log-probs of responses that came without any: those of the policy that sampled."""
NOT_MEASURED = EvidenceRow(
    logps=Float32Array(), applicable=False, context=ContextName.PLAIN, reason=EvidenceReason.ASKED
)


def pack(groups: Sequence[EvidencedGroup]) -> TrainBatch:
    """Packs the groups of a step, in order, into a batch of B sequences of at most T response tokens.

    Follow-up groups are packed by what they are for:

    - Continuations, fresh responses to the prompt or to a prefix of a response, become the value of that prefix
      (`prefix_value_BT1`) and no sequences.
    - Demonstrations, responses to a privileged prompt, become sequences under the plain prompt of their group. They
      have no reward.

    A sequence without a verdict has the reward NaN, which no statistic counts, and an empty mask, which no denominator
    counts.

    Example: two groups of two responses. The first group has responses of 3 and 5 tokens and the rewards 1 and 0. The
    second has responses of 4 and 2 tokens, a reward of 1 and a grading timeout; the teacher measured it alone.

        mask_BT, rollout_logp_BT         [4, 5]     rows with 3, 5, 4 and 0 ones
        reward_B                         [1, 0, 1, nan]
        group_B                          [0, 0, 1, 1]
        prompt_ids, response_ids         4 tuples of token ids; the responses have 3, 5, 4 and 2
        evidence[ask].logp_BT            [4, 5]     for each ask of either group
        evidence[ask].applicable_B       [False, False, True, True]

    Args:
        groups: at least one group that is no follow-up.
    """
    prompts = {group.task.index: group for group in groups if group.task.origin is None}
    continuations = _follow_ups(groups, FollowUp.CONTINUATION)
    demonstrations = _follow_ups(groups, FollowUp.DEMONSTRATION)
    rows = [*prompts.values(), *demonstrations]
    completions = [completion for group in rows for completion in group.scored.rollout.completions]
    verdicts = [verdict for group in rows for verdict in group.scored.verdicts]
    size_G = torch.tensor([len(group.scored.verdicts) for group in rows])
    demonstration_G = torch.tensor([group.task.origin is not None for group in rows])
    demonstration_B = demonstration_G.repeat_interleave(size_G)
    mask_BT = _pad([_mask(c, v) for c, v in zip(completions, verdicts, strict=True)])
    reward_B = torch.tensor([math.nan if v.failed else v.reward for v in verdicts])
    return TrainBatch(
        prompt_ids=[_prompt(group, prompts) for group in rows for _ in group.scored.verdicts],
        response_ids=[tuple(c.token_ids) for c in completions],
        mask_BT=mask_BT,
        reward_B=torch.where(demonstration_B, math.nan, reward_B),
        accuracy_B=torch.tensor([v.accuracy for v in verdicts]),
        group_B=torch.arange(len(rows)).repeat_interleave(size_G),
        rollout_logp_BT=_pad([row for group in rows for row in _sampled_logps(group)], mask_BT.shape[1]),
        max_tokens=rows[0].task.sampling.max_tokens,
        truncated_B=torch.tensor([c.finish_reason is FinishReason.LENGTH for c in completions]),
        demonstration_B=demonstration_B,
        images=[group.task.images for group in rows for _ in group.scored.verdicts],
        evidence={ask: _evidence(ask, rows, mask_BT.shape[1]) for ask in _asks(rows)},
        step_ends=[c.step_ends for c in completions],
        step_rewards=[v.step_rewards for v in verdicts],
        prefix_value_BT1=_prefix_values(rows, continuations, mask_BT) if continuations else None,
        step=rows[0].task.step,
        given=[c.given for c in completions] if any(c.given for c in completions) else (),
    )


def _sampled_logps(group: EvidencedGroup) -> list[tuple[float, ...]]:
    """The log-probs of each response under the policy that sampled: the engine's, or else those that the teacher
    measured; none for a response that no engine sampled."""
    measured = _rows(SAMPLED, group)
    completions = group.scored.rollout.completions
    return [tuple(c.logps or row.logps) for c, row in zip(completions, measured, strict=True)]


def _mask(completion: Completion, verdict: Verdict) -> list[float]:
    """1 for each sampled token of a response with a verdict, otherwise 0."""
    tokens = len(completion.token_ids)
    return [0.0] * tokens if verdict.failed else list(map(float, sampled_mask(completion.given, tokens)))


def _follow_ups(groups: Iterable[EvidencedGroup], kind: FollowUp) -> list[EvidencedGroup]:
    """The follow-up groups of a kind, in order."""
    return [group for group in groups if group.task.origin is not None and group.task.origin.kind is kind]


def _prompt(group: EvidencedGroup, prompts: dict[int, EvidencedGroup]) -> tuple[int, ...]:
    """The token ids of the plain prompt: a demonstration has that of the group it was made for."""
    origin = group.task.origin
    return tuple((group if origin is None else prompts[origin.index]).scored.rollout.prompt_token_ids)


def _asks(groups: Iterable[EvidencedGroup]) -> list[Ask]:
    """Every ask of the groups once, in order."""
    return list(dict.fromkeys(evidence.ask for group in groups for evidence in group.evidence))


def _evidence(ask: Ask, groups: Sequence[EvidencedGroup], width: int) -> EvidenceTensors:
    """The evidence of one ask, padded to `width` tokens."""
    rows = [row for group in groups for row in _rows(ask, group)]
    top_ids_BTk = top_logp_BTk = pooled_BD = None
    if any(row.top_ids for row in rows):
        top_ids_BTk = _pad_top(rows, [row.top_ids.data for row in rows], width, torch.int32).long()
        top_logp_BTk = _pad_top(rows, [row.top_logps.data for row in rows], width, torch.float32)
    if units := max((len(row.pooled) for row in rows), default=0):
        pooled_BD = torch.tensor([tuple(row.pooled) or (0.0,) * units for row in rows])
    return EvidenceTensors(
        logp_BT=_pad([tuple(row.logps) for row in rows], width),
        applicable_B=torch.tensor([row.applicable for row in rows]),
        top_ids_BTk=top_ids_BTk,
        top_logp_BTk=top_logp_BTk,
        pooled_BD=pooled_BD,
        substitute_B=torch.tensor([row.applicable and row.reason is not EvidenceReason.ASKED for row in rows]),
    )


def _rows(ask: Ask, group: EvidencedGroup) -> Sequence[EvidenceRow]:
    """A group's evidence of an ask, one row per response; rows that do not apply if it was not measured."""
    for evidence in group.evidence:
        if evidence.ask == ask:
            return evidence.rows
    return [NOT_MEASURED] * len(group.scored.verdicts)


def _prefix_values(
    groups: Sequence[EvidencedGroup], continuations: Iterable[EvidencedGroup], mask_BT: Tensor
) -> Tensor:
    """The mean reward of the continuations of each prefix, [B, T + 1]; NaN for prefixes without continuations.

    Continuations of the prompt alone (origin.sample -1) give the value of the empty prefix of the group's responses.
    """
    rows_of, first = {}, 0
    for group in groups:
        if group.task.origin is None:
            rows_of[group.task.index] = range(first, first + len(group.scored.verdicts))
        first += len(group.scored.verdicts)
    rewards_of: dict[tuple[int, int], list[float]] = defaultdict(list)
    for group in continuations:
        origin = group.task.origin
        assert origin is not None
        rows = rows_of[origin.index]
        for row in rows if origin.sample < 0 else [rows[origin.sample]]:
            rewards_of[row, len(group.task.prefix)] += [v.reward for v in group.scored.verdicts if not v.failed]
    value_BT1 = torch.full((mask_BT.shape[0], mask_BT.shape[1] + 1), math.nan)
    for (row, length), rewards in rewards_of.items():
        value_BT1[row, length] = sum(rewards) / len(rewards) if rewards else math.nan
    return value_BT1


def _pad(rows: Sequence[Sequence[float]], width: int = 0) -> Tensor:
    """[rows, longest row], or [rows, width] if that is more, padded with 0."""
    padded_BT = pad_sequence([torch.tensor(row, dtype=torch.float32) for row in rows], batch_first=True)
    return torch.nn.functional.pad(padded_BT, (0, max(0, width - padded_BT.shape[1])))


def _pad_top(rows: Sequence[EvidenceRow], columns: Sequence[bytes], width: int, dtype: torch.dtype) -> Tensor:
    """[B, width, k] from each row's T x k numbers, sent as little-endian numbers of four bytes."""
    k = max(len(column) // (4 * len(row.logps)) for row, column in zip(rows, columns, strict=True) if row.logps)
    padded_BTk = torch.zeros(len(rows), width, k, dtype=dtype)
    for at, column in enumerate(columns):
        if column:
            padded_BTk[at, : len(rows[at].logps)] = torch.frombuffer(bytearray(column), dtype=dtype).view(-1, k)
    return padded_BTk
