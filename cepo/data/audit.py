"""Checks of a data set before training: which answers to grade, and which questions repeat."""

from __future__ import annotations

import random
from collections.abc import Sequence

from cepo.data.problems import Problem

SAMPLE_ROWS = 512
"""Rows of a set whose answers are graded by default."""


def sample(problems: Sequence[Problem], seed: int, *, every: bool = False) -> list[Problem]:
    """The problems whose answers are graded, in order: all, or a seeded sample of a large set."""
    if every or len(problems) <= SAMPLE_ROWS:
        return list(problems)
    chosen = random.Random(f"gold-{seed}").sample(range(len(problems)), SAMPLE_ROWS)
    return [problems[i] for i in sorted(chosen)]


def repeated(problems: Sequence[Problem]) -> list[tuple[int, int]]:
    """Rows whose question an earlier row asks: pairs of (row, first row with the question)."""
    first: dict[str, int] = {}
    pairs = [(problem.row, first.setdefault(question(problem), problem.row)) for problem in problems]
    return [(row, earlier) for row, earlier in pairs if row != earlier]


def leaked(train: Sequence[Problem], held_out: Sequence[Problem]) -> list[tuple[int, int]]:
    """Held-out rows whose question is also a training question: pairs of (held-out row, training row)."""
    trained = {question(problem): problem.row for problem in train}
    return [(problem.row, trained[question(problem)]) for problem in held_out if question(problem) in trained]


def question(problem: Problem) -> str:
    """The key by which two questions are equal: the user turns without case and spacing, and the images."""
    text = "\n".join(message.content for message in problem.messages if message.role == "user")
    return " ".join([*text.casefold().split(), *(image.sha256 for image in problem.images)])
