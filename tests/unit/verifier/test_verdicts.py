"""What is decided without algebra."""

from __future__ import annotations

import itertools

from cepo.answers.kinds import Kind
from services.verifier.decisions import decide
from services.verifier.grader import Comparison, compare

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
