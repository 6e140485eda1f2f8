"""Rows of token ids as a tree, in which a prefix that several rows share is laid out once.

A group scored under two hints is question -> {hint r+, hint r-} -> the responses. The tokens lie in one flat list in
preorder, so the descendants of a node are the tokens right after it. Example, for the rows `a b c`, `a b d e` and `a f`
(if MIN_SAVED were 0):

    ids_N    a b c d e f
    depth_N  0 1 2 2 3 1    position in the row
    stop_N   6 5 3 5 5 6    end of the token's descendants
    paths    [0 1 2], [0 1 3 4], [0 5]

Token q attends to token k if k <= q < stop_N[k]: to its ancestors and itself.

Legend: N distinct tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

MIN_SAVED = 8
"""A branching point that saves fewer tokens is dropped: each one costs two more attention calls per layer."""
BLOCK = 128
"""Tokens of a block of FlexAttention's mask."""
STEP = {"cpu": 32, "cuda": BLOCK, "meta": BLOCK}
"""Passes are padded to a multiple of this size, by the type of the device. The first use of a new size costs oneDNN as
much as a small pass. On a GPU a kernel is compiled for it, and faults of compiled FlexAttention need a last block that
is incomplete (pytorch#153799, pytorch#159247)."""
STEPS = {"cpu": 16, "cuda": 8, "meta": 8}
"""Large passes are padded further, so that at most this many sizes lie between a power of two and the next."""
PASS_TOKENS = 64
"""Fixed cost of a pass, in tokens, when rows are cut into passes."""

Row = Sequence[int]


@dataclass(frozen=True)
class TreeNode:
    """Consecutive tokens shared by the same rows: `start` to `end`, with the descendants at `end` to `stop`."""

    start: int
    end: int
    stop: int


@dataclass(frozen=True)
class TokenTree:
    """N distinct tokens in preorder; the module's docstring has an example."""

    ids_N: Tensor
    depth_N: Tensor
    """Position of each token in its rows."""
    stop_N: Tensor
    """End of each token's descendants."""
    paths: tuple[Tensor, ...]
    """For each row, in the caller's order, the indices of its tokens."""

    def padded(self, device: str = "cpu") -> TokenTree:
        """Adds padding tokens that belong to no row, so that passes have few distinct sizes.

        Example: on the CPU 33 tokens become 64, and 1,025 tokens become 1,088; on a GPU 128 and 1,152.

        Args:
            device: the type of the device that runs the pass.
        """
        size = len(self.ids_N)
        step = max(STEP[device], 2 ** (size - 1).bit_length() // (2 * STEPS[device]))
        padding = torch.arange(-size % step)
        return TokenTree(
            torch.cat([self.ids_N, torch.zeros_like(padding)]),
            torch.cat([self.depth_N, padding]),
            torch.cat([self.stop_N, torch.full_like(padding, size + len(padding))]),
            self.paths,
        )

    @property
    def nodes(self) -> tuple[TreeNode, ...]:
        """The nodes in preorder."""
        if not len(self.ids_N):
            return ()
        new_N = (self.stop_N.diff() != 0) | (self.depth_N.diff() != 1)
        starts = [0, *(new_N.nonzero().flatten() + 1).tolist()]
        ends = [*starts[1:], len(self.ids_N)]
        stops = self.stop_N[starts].tolist()
        return tuple(TreeNode(*node) for node in zip(starts, ends, stops, strict=True))


def token_tree(rows: Sequence[Row]) -> TokenTree:
    """Builds the tree of the rows. Its layout does not depend on the order of the rows.

    Rows are added in sorted order. Each row reuses the tokens that it shares with the row before it; the other tokens
    of the row before it have no further descendants.
    """
    order, sorted_rows = _sorted(rows)
    ids, depths, paths = [], [], [torch.zeros(0, dtype=torch.long)] * len(rows)
    stop_N = torch.zeros(sum(map(len, sorted_rows)), dtype=torch.long)
    path, size = torch.zeros(0, dtype=torch.long), 0
    for i, row, shared in zip(order, sorted_rows, _without_small_branches(_shared(sorted_rows)), strict=True):
        stop_N[path[shared:]] = size
        added = len(row) - shared
        path = torch.cat([path[:shared], torch.arange(size, size + added)])
        paths[i] = path
        ids.append(row[shared:])
        depths.append(torch.arange(shared, len(row)))
        size += added
    stop_N[path] = size
    return TokenTree(torch.cat(ids), torch.cat(depths), stop_N[:size], tuple(paths))


def passes(rows: Sequence[Row], budget: int) -> list[list[int]]:
    """Cuts rows into passes of at most `budget` distinct tokens, with the fewest tokens in all.

    A pass costs its distinct tokens plus PASS_TOKENS. A row longer than the budget is a pass of its own. The sorted
    rows are cut by a dynamic program: `cost[end]` is the lowest cost of the first `end` rows, which is the lowest
    `cost[first]` plus the cost of one pass over the rows `first` to `end - 1`; `last[end]` is that `first`.

    Example: with a budget of 8, the rows `a b c d`, `e f g h` and `a b c x` give `[[0, 2], [1]]`, passes of 5 and 4
    tokens.

    Returns:
        Indices of rows for each pass. Neighbouring rows share the longest prefixes.
    """
    order, sorted_rows = _sorted(rows)
    shared = _shared(sorted_rows)
    lengths = [len(row) for row in sorted_rows]
    if order and sum(lengths) - sum(shared) <= budget:
        return [order]  # a cut never saves tokens
    cost, last = [0], [0]
    for end in range(1, len(order) + 1):
        added, choices = 0, []  # added: tokens that the rows after `first` lay out in addition to those of `first`
        for first in range(end - 1, -1, -1):
            tokens = lengths[first] + added
            if tokens > budget and first < end - 1:
                break  # an even longer pass has no fewer tokens
            choices.append((cost[first] + tokens + PASS_TOKENS, first))
            added = tokens - shared[first]
        lowest, first = min(choices)
        cost.append(lowest)
        last.append(first)
    return _cuts(order, last)


def padded_passes(rows: Sequence[Row], budget: int) -> list[list[int]]:
    """Cuts rows into padded passes: their number of rows times the length of the longest is at most `budget`.

    The rows are cut by the same dynamic program as in `passes`, in the order of their lengths. A row longer than the
    budget is a pass of its own.

    Example: with a budget of 8, rows of 2, 4, 2 and 4 tokens give `[[0, 2], [1, 3]]`, passes of 4 and 8 tokens.
    """
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    cost, last = [0], [0]
    for end, i in enumerate(order, start=1):
        width = len(rows[i])
        most = max(1, budget // max(1, width))
        starts = range(max(0, end - most), end)
        lowest, first = min((cost[start] + (end - start) * width + PASS_TOKENS, start) for start in starts)
        cost.append(lowest)
        last.append(first)
    return _cuts(order, last)


def _cuts(order: Sequence[int], last: Sequence[int]) -> list[list[int]]:
    """The passes in order: the one that ends before `order[end]` begins at `order[last[end]]`."""
    cuts, end = [], len(order)
    while end:
        cuts.append(list(order[last[end] : end]))
        end = last[end]
    return cuts[::-1]


def _sorted(rows: Sequence[Row]) -> tuple[list[int], list[Tensor]]:
    """The indices of the rows in lexicographic order, and the rows in that order."""
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
    return order, [torch.tensor(rows[i], dtype=torch.long) for i in order]


def _shared(sorted_rows: Sequence[Tensor]) -> list[int]:
    """The length of the prefix that each row shares with the row before it; 0 for the first row."""
    shared = [0] * len(sorted_rows)
    for i, (before, row) in enumerate(pairwise(sorted_rows), start=1):
        width = min(len(before), len(row))
        differs = (before[:width] != row[:width]).nonzero()
        shared[i] = int(differs[0]) if len(differs) else width
    return shared


def _without_small_branches(shared: list[int]) -> list[int]:
    """Drops the branching points that save fewer than MIN_SAVED tokens, from the root down.

    `shared[i]` is the depth at which sorted row i leaves row i - 1. Several rows that share their first `above` tokens
    branch next at `depth`, the smallest `shared` among them, into one branch more than there are rows with that value.
    All branches but one save `depth - above` tokens each. If that is too little, the branches start at `above`.

    Example with MIN_SAVED = 8: `[0, 20, 23, 20]` becomes `[0, 20, 20, 20]`, since the branching point at 23 saves 3
    tokens, and the one at 20 saves 2 * 20.
    """
    kept = list(shared)
    groups = [(0, len(shared), 0)]  # rows `first` to `end - 1`, which share their first `above` tokens
    while groups:
        first, end, above = groups.pop()
        if end - first < 2:
            continue
        depth = min(shared[first + 1 : end])
        branches = [i for i in range(first + 1, end) if shared[i] == depth]  # each branch's first row, but the first's
        if (depth - above) * len(branches) < MIN_SAVED:
            depth = above
        for i in branches:
            kept[i] = depth
        groups += [(start, stop, depth) for start, stop in pairwise([first, *branches, end])]
    return kept
