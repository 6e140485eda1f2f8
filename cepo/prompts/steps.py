"""Reasoning steps of a response: where the text splits into steps, and which token ends each step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence


def split_steps(text: str, delimiter: str = "\n") -> list[int]:
    """The exclusive end of each reasoning step in the text, in characters. There is at least one step.

    A delimiter belongs to the step after it. A blank piece belongs to the next piece that is not blank, or to the last
    step. Example: "a\\n\\nbc" gives `[1, 5]`, the steps "a" and "\\n\\nbc".
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
    """The number of tokens up to the end of each step.

    A token belongs to the step of its first character. A step in which no token starts is empty. Tokens without text at
    the end of the response, such as the end of sequence, belong to the last step.

    Args:
        tokens: number of tokens of the response.
        length: returns the number of characters of the first n tokens; called a few times per step.
        ends: the result of `split_steps`.

    Returns:
        One number per step; the last is `tokens`.
    """
    counts: list[int] = []
    for end in ends[:-1]:
        counts.append(bisect_left(range(tokens), end, lo=counts[-1] if counts else 0, key=length))
    return (*counts, tokens)


def steps(text: str, delimiter: str) -> list[str]:
    """The text of each step; joined, they are the whole text."""
    ends = split_steps(text, delimiter)
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
