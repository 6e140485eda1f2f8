"""The pieces a step is learned in: mini-batches of an optimiser update each, micro-batches of a pass each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from cepo.algo.batch import TrainBatch


def minibatches(batch: TrainBatch, count: int) -> list[list[int]]:
    """Rows of whole groups, in order, in equal numbers, and as equal a share of the demonstrations in each."""
    shown_B = batch.demonstration_B
    halves = [batch.group_B[rows_B].unique().tensor_split(count) for rows_B in (~shown_B, shown_B)]
    parts = [torch.cat(part) for part in zip(*halves, strict=True)]
    return [torch.isin(batch.group_B, part).nonzero().flatten().tolist() for part in parts if len(part)]


def microbatches(batch: TrainBatch, rows: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Sequences of like length together, at most `tokens` padded tokens, at least one sequence."""
    length = {row: len(batch.prompt_ids[row]) + len(batch.response_ids[row]) for row in rows}
    part: list[int] = []
    for row in sorted(rows, key=lambda row: (length[row], row)):
        if part and (len(part) + 1) * length[row] > tokens:
            yield part
            part = []
        part.append(row)
    if part:
        yield part
