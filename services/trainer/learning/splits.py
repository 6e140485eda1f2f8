"""The pieces a step is learned in: mini-batches of an optimiser update each, a share of them for each rank, and
micro-batches of a pass each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from cepo.algo.batch import TrainBatch
from cepo.model.tree import passes


def minibatches(batch: TrainBatch, count: int) -> list[list[int]]:
    """Rows of whole groups, in order, in equal numbers, and as equal a share of the demonstrations in each."""
    shown_B = batch.demonstration_B
    halves = [batch.group_B[rows_B].unique().tensor_split(count) for rows_B in (~shown_B, shown_B)]
    parts = [torch.cat(part) for part in zip(*halves, strict=True)]
    return [torch.isin(batch.group_B, part).nonzero().flatten().tolist() for part in parts if len(part)]


def share(batch: TrainBatch, rows: Sequence[int], rank: int, size: int) -> list[int]:
    """The rows of one rank of several, in order: whole groups, so that every rank has about as many tokens."""
    members: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        members[int(batch.group_B[row])].append(row)
    tokens = {
        group: len(batch.prompt_ids[its[0]]) + sum(len(batch.response_ids[row]) for row in its)
        for group, its in members.items()
    }
    loads, own = [0] * size, set()
    for group in sorted(tokens, key=lambda group: (-tokens[group], group)):  # the longest first, to the idlest rank
        least = loads.index(min(loads))
        loads[least] += tokens[group]
        if least == rank:
            own.update(members[group])
    return [row for row in rows if row in own]


def microbatches(
    batch: TrainBatch, rows: Sequence[int], tokens: int, *, whole_groups: bool = False
) -> Iterator[list[int]]:
    """Rows that share most together, at most `tokens` distinct tokens, at least one row.

    Args:
        whole_groups: no group is split; at least one group, and what its rows share is not looked at.
    """
    shown = batch.images or [()] * batch.size
    keys = {images: [-1 - at] for at, images in enumerate(dict.fromkeys(shown)) if images}  # other images share nothing
    sequences = {row: [*keys.get(shown[row], ()), *batch.prompt_ids[row], *batch.response_ids[row]] for row in rows}
    if not whole_groups:
        for part in passes(list(sequences.values()), tokens):
            yield [rows[i] for i in part]
        return
    taken: list[int] = []
    for group in batch.group_B[list(rows)].unique().tolist():
        members = [row for row in rows if batch.group_B[row] == group]
        if taken and sum(len(sequences[row]) for row in taken + members) > tokens:
            yield taken
            taken = []
        taken += members
    if taken:
        yield taken
