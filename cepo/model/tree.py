"""Rows of token ids as a tree: what several rows begin with is laid out once.

A group scored under two hints is question -> {hint r+, hint r-} -> the responses. Nodes lie in one flat list in
preorder, so a node's descendants are the tokens right after it, and token q sees token k if k <= q < stop[k].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

MIN_SAVED = 8
"""Tokens that a branching point must save; each costs two more attention calls a layer."""
STEP = 32
"""Tokens of a small pass are a multiple of it: a number of tokens that is new costs oneDNN as much as such a pass."""
STEPS = 16
"""So many numbers of tokens at most between one and its double, up to which a pass is filled."""
PASS_TOKENS = 64
"""What starting a pass costs, in tokens, where rows are cut into passes."""

Row = Sequence[int]


@dataclass(frozen=True)
class TreeNode:
    """Tokens that the same rows share: start to end, its descendants from end to stop."""

    start: int
    end: int
    stop: int


@dataclass(frozen=True)
class TokenTree:
    """N distinct tokens in preorder."""

    ids_N: Tensor
    depth_N: Tensor
    """Position of each token in its rows."""
    stop_N: Tensor
    """End of each token's descendants."""
    paths: tuple[Tensor, ...]
    """Where the tokens of each row lie, in the order the rows came."""

    def filled(self) -> TokenTree:
        """With tokens of no row after the others, so that passes have few lengths."""
        size = len(self.ids_N)
        step = max(STEP, 2 ** (size - 1).bit_length() // (2 * STEPS))
        more = torch.arange(-size % step)
        return TokenTree(
            torch.cat([self.ids_N, torch.zeros_like(more)]),
            torch.cat([self.depth_N, more]),
            torch.cat([self.stop_N, torch.full_like(more, size + len(more))]),
            self.paths,
        )

    @property
    def nodes(self) -> tuple[TreeNode, ...]:
        """Preorder."""
        if not len(self.ids_N):
            return ()
        new_N = (self.stop_N.diff() != 0) | (self.depth_N.diff() != 1)
        starts = [0, *(new_N.nonzero().flatten() + 1).tolist()]
        ends = [*starts[1:], len(self.ids_N)]
        stops = self.stop_N[starts].tolist()
        return tuple(TreeNode(*node) for node in zip(starts, ends, stops, strict=True))


def token_tree(rows: Sequence[Row]) -> TokenTree:
    """The tree of these rows; the same for every order they come in."""
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
    lines = [torch.tensor(rows[i], dtype=torch.long) for i in order]
    ids, depths, paths = [], [], [torch.zeros(0, dtype=torch.long)] * len(rows)
    stop_N = torch.zeros(sum(len(line) for line in lines), dtype=torch.long)
    path, size = torch.zeros(0, dtype=torch.long), 0
    for i, line, shared in zip(order, lines, _worthwhile(_shared(lines)), strict=True):
        stop_N[path[shared:]] = size
        own = len(line) - shared
        path = torch.cat([path[:shared], torch.arange(size, size + own)])
        paths[i] = path
        ids.append(line[shared:])
        depths.append(torch.arange(shared, len(line)))
        size += own
    stop_N[path] = size
    return TokenTree(torch.cat(ids), torch.cat(depths), stop_N[:size], tuple(paths))


def passes(rows: Sequence[Row], budget: int) -> list[list[int]]:
    """Cuts rows into passes of at most `budget` distinct tokens, at least one row each, with the fewest tokens in all.

    Returns:
        Indices of rows; neighbours share most.
    """
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
    shared = _shared([torch.tensor(rows[i], dtype=torch.long) for i in order])
    if order and sum(map(len, rows)) - sum(shared) <= budget:
        return [order]  # a cut never saves
    best, cut = [0], [0]  # over the first j rows: tokens, and where the last pass begins
    for j in range(1, len(order) + 1):
        added, options = 0, []
        for i in range(j - 1, -1, -1):
            tokens = added + len(rows[order[i]])
            if tokens > budget and i < j - 1:
                break
            options.append((best[i] + tokens + PASS_TOKENS, i))
            added = tokens - shared[i]
        tokens, begin = min(options)
        best.append(tokens)
        cut.append(begin)
    found, end = [], len(order)
    while end:
        found.append(order[cut[end] : end])
        end = cut[end]
    return found[::-1]


def _shared(lines: Sequence[Tensor]) -> list[int]:
    """Tokens that each row begins with as the row before it does."""
    found = [0] * len(lines)
    for i, (before, line) in enumerate(pairwise(lines), start=1):
        width = min(len(before), len(line))
        differs = (before[:width] != line[:width]).nonzero()
        found[i] = int(differs[0]) if len(differs) else width
    return found


def _worthwhile(shared: list[int]) -> list[int]:
    """Without the branching points that save too little: their branches begin where the one above does."""
    kept = list(shared)
    open_ = [(1, len(shared), 0)]
    while open_:
        low, high, above = open_.pop()  # rows low - 1 to high share `above` tokens
        if low >= high:
            continue
        depth = min(shared[low:high])
        branches = [i for i in range(low, high) if shared[i] == depth]
        if (depth - above) * len(branches) < MIN_SAVED:
            depth = above
        for i in branches:
            kept[i] = depth
        edges = [low - 1, *branches, high]
        open_ += [(begin + 1, end, depth) for begin, end in pairwise(edges)]
    return kept
