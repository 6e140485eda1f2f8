"""Reasoning steps of a response: where its text splits, and which token ends each of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence


def split_steps(text: str, delimiter: str = "\n") -> list[int]:
    """Where each reasoning step ends in the text: an exclusive character offset per step, at least one.

    A delimiter belongs to the step after it, and blank pieces to the next piece that is not (at the end, to the last).
    """
    ends: list[int] = []
    position = 0
    for piece in text.split(delimiter):
        position += len(piece)
        if piece.strip():
            ends.append(position)
        position += len(delimiter)
    return [*ends[:-1], len(text)]


def step_ends(tokens: int, length: Callable[[int], int], ends: Sequence[int]) -> tuple[int, ...]:
    """How many tokens there are up to the end of each step; a token belongs to the step its first character is in.

    A step in which no token starts ends where the step before does. Tokens without characters that end the response,
    as the end of sequence, belong to the last step.

    Args:
        tokens: of the whole response.
        length: the characters that the first so many tokens make; asked a few times a step.
        ends: of `split_steps`.
    """
    found: list[int] = []
    for end in ends[:-1]:
        found.append(bisect_left(range(tokens), end, lo=found[-1] if found else 0, key=length))
    return (*found, tokens)


def steps(text: str, delimiter: str) -> list[str]:
    """The text of each step; together they are the whole text."""
    ends = split_steps(text, delimiter)
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
