"""Reward shaping: terms added to a reward before the advantage."""

from __future__ import annotations


def overlong_penalty(length: int, max_length: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv:2503.14476, Eq. 13), from -1 to 0, in tokens.

    0 up to max_length - buffer, then falling linearly to -1 at max_length, and -1 beyond.

    Raises:
        ValueError: the buffer is negative or longer than max_length.
    """
    if not 0 <= buffer <= max_length:
        raise ValueError(f"buffer must be within [0, max_length = {max_length}], got {buffer}")
    if length > max_length:
        return -1.0
    excess = length - (max_length - buffer)
    return -excess / buffer if excess > 0 else 0.0
