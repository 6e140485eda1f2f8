"""Splits the batch of a step: mini-batches (one optimizer step each), shares of the ranks, and micro-batches (one
forward and backward pass each).

Rows are indices into the batch. Example with groups of 2, two mini-batches and two ranks:

    batch          rows 0 to 7, groups 0 0 1 1 2 2 3 3
    minibatches    [0, 1, 2, 3] and [4, 5, 6, 7]
    share          of the first one: rank 0 has [0, 1], rank 1 has [2, 3]
    microbatches   of rank 0: [0, 1], or [0] and [1] if both together exceed `tokens`
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from cepo.algo.batch import TrainBatch
from cepo.model.tree import padded_passes, passes


def minibatches(batch: TrainBatch, count: int) -> list[list[int]]:
    """The rows of each mini-batch: whole groups, in order, in numbers as equal as possible.

    Sampled groups and demonstrations are split separately, so that each mini-batch has its part of both.
    """
    demonstration_B = batch.demonstration_B
    sampled, demonstrated = (batch.group_B[rows_B].unique() for rows_B in (~demonstration_B, demonstration_B))
    splits = zip(sampled.tensor_split(count), demonstrated.tensor_split(count), strict=True)
    groups = [torch.cat(split) for split in splits]
    return [torch.isin(batch.group_B, group).nonzero().flatten().tolist() for group in groups if len(group)]


def share(batch: TrainBatch, rows: Sequence[int], rank: int, size: int) -> list[int]:
    """The rows of one rank, in order: whole groups, assigned so that all ranks have about the same number of tokens."""
    members: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        members[int(batch.group_B[row])].append(row)
    tokens = {
        group: len(batch.prompt_ids[its[0]]) + sum(len(batch.response_ids[row]) for row in its)
        for group, its in members.items()
    }
    loads, mine = [0] * size, set[int]()
    for group in sorted(tokens, key=lambda group: (-tokens[group], group)):  # longest first, to the least loaded
        least_loaded = loads.index(min(loads))
        loads[least_loaded] += tokens[group]
        if least_loaded == rank:
            mine.update(members[group])
    return [row for row in rows if row in mine]


def microbatches(
    batch: TrainBatch, rows: Sequence[int], tokens: int, *, whole_groups: bool = False, padded: bool = False
) -> Iterator[list[int]]:
    """The rows of each micro-batch, each with at most `tokens` tokens, but at least one row.

    A prefix that rows share counts once; rows are grouped so that they share as much as possible.

    Args:
        whole_groups: no group is split, so a micro-batch has at least one group; shared prefixes count every time.
        padded: the model pads its rows: a micro-batch counts its rows times the longest one.
    """
    images = batch.images or [()] * batch.size
    # Rows with different images share nothing: a negative id before the prompt stands for each set of images.
    image_ids = {key: [-1 - i] for i, key in enumerate(dict.fromkeys(images)) if key}
    sequences = {
        row: [*image_ids.get(images[row], ()), *batch.prompt_ids[row], *batch.response_ids[row]] for row in rows
    }
    if not whole_groups:
        cut = padded_passes if padded else passes
        for indices in cut(list(sequences.values()), tokens):
            yield [rows[i] for i in indices]
        return
    micro: list[int] = []
    for group in batch.group_B[list(rows)].unique().tolist():
        members = [row for row in rows if batch.group_B[row] == group]
        lengths = [len(sequences[row]) for row in micro + members]
        if micro and (len(lengths) * max(lengths) if padded else sum(lengths)) > tokens:
            yield micro
            micro = []
        micro += members
    if micro:
        yield micro
