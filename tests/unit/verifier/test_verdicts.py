"""Verdicts that need no algebra: they agree with it, and a group's texts are read once."""

from __future__ import annotations

import asyncio
import cProfile
import itertools
from collections.abc import Callable
from typing import Any

from cepo.answers.extract import extract, reference_of
from cepo.answers.kinds import Kind, kind_of
from services.verifier.decisions import decide
from services.verifier.grader import Comparison, compare
from services.verifier.handler import Verifier
from services.verifier.pool import GraderPool
from tests.helpers.factories import make_group

ANSWERS = [
    r"0", r"3", r"-3", r"3.0", r"3.00001", r"3.0001", r"1/3", r"0.3333", r"\frac{2}{6}", r"1,234", r"1234.0",
    r"-\frac{1}{2}", r"0.5", r"$18", r"18", r"90^\circ", r"1000000", r"1000001", r"2.5", r"5/2", r"x+1", r"{x}+1",
    r"\left(1,2\right)", r"(1,2)",
]  # fmt: skip


def test_what_is_decided_without_algebra_is_what_algebra_decides() -> None:
    decided = 0
    for answer, reference in itertools.product(ANSWERS, repeat=2):
        quick = decide(Kind("math"), answer, reference)
        if quick is not None:
            decided += 1
            assert quick == compare(Comparison(answer, reference)).equal, (answer, reference)
    assert decided > 300


def calls_of(profile: cProfile.Profile, function: Callable[..., Any]) -> int:
    """How often a function was called while the profile was on."""
    return sum(entry.callcount for entry in profile.getstats() if entry.code is function.__code__)


def test_a_group_reads_its_reference_once_and_each_response_once() -> None:
    texts = [f"\\boxed{{{i}}}" for i in range(6)] + ["no mark", "\\boxed{7}"]
    with cProfile.Profile() as profile:
        scored = asyncio.run(Verifier(GraderPool(1)).verify(make_group(texts)))  # plain numbers need no worker
    assert [calls_of(profile, function) for function in (reference_of, kind_of, extract)] == [1, 1, 8]
    assert [verdict.accuracy for verdict in scored.verdicts] == [0.0] * 7 + [1.0]
    assert [verdict.format for verdict in scored.verdicts] == [1.0] * 6 + [0.0, 1.0]
