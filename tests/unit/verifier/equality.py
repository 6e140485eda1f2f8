"""The verdict on an answer in a box, in the order of the product: without algebra if it can be decided so."""

from __future__ import annotations

from cepo.answers.extract import extract
from cepo.answers.kinds import Reference
from services.verifier.decisions import decide
from services.verifier.grader import Comparison, compare


def equal(answer: str, reference: str, kind: str = "") -> bool:
    """Whether an answer in a box is right."""
    wanted, answer = Reference.of(reference, kind), extract(f"\\boxed{{{answer}}}") or ""
    decided = decide(wanted.kind, answer, wanted.answer)
    return compare(Comparison(answer, wanted.answer, wanted.kind)).equal if decided is None else decided
