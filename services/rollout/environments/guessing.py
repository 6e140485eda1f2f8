"""Guess the number: the policy names numbers until it meets the row's answer."""

from __future__ import annotations

import re
from typing import Any


class GuessTheNumber:
    """Says "higher" or "lower" to each guess. The right number ends the trajectory with a reward that falls.

    The number is the row's `answer`. The first guess earns 1, the second 1/2, the third 1/4; a turn without a number
    is told so and counts as a guess.
    """

    def reset(self, row: dict[str, Any]) -> None:
        """Takes the number of a row."""
        self._number = int(row["answer"])
        self._guesses = 0

    def step(self, message: dict[str, Any]) -> tuple[str | bool, float]:
        """Compares the last number of a turn."""
        self._guesses += 1
        numbers = re.findall(r"-?\d{1,18}", message["content"])
        if not numbers:
            return "Name a number.", 0.0
        guess = int(numbers[-1])
        if guess == self._number:
            return True, 0.5 ** (self._guesses - 1)
        return "higher" if guess < self._number else "lower", 0.0
