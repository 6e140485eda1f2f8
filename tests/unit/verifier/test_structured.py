"""Structured answers: equal and unequal pairs of every structure, decided in the order of the product."""

from __future__ import annotations

import pytest

from cepo.answers.kinds import Reference
from services.verifier.decisions import decide
from services.verifier.grader import Comparison, compare
from tests.unit.verifier.structured import RIGHT, WRONG


def equal(answer: str, reference: str, kind: str = "") -> bool:
    """The verdict on an answer: by its structure without algebra, otherwise with it."""
    wanted = Reference.of(reference, kind)
    decided = decide(wanted.kind, answer, wanted.answer)
    return compare(Comparison(answer, wanted.answer, wanted.kind)).equal if decided is None else decided


@pytest.mark.parametrize("structure", RIGHT)
def test_equal_structures_are_equal(structure: str) -> None:
    assert [pair for pair in RIGHT[structure] if not equal(*pair)] == []


@pytest.mark.parametrize("structure", WRONG)
def test_other_structures_are_not_equal(structure: str) -> None:
    assert [pair for pair in WRONG[structure] if equal(*pair)] == []


@pytest.mark.parametrize("structure", RIGHT)
def test_every_structure_is_equal_to_itself(structure: str) -> None:
    assert [reference for _, reference in RIGHT[structure] if not equal(reference, reference)] == []
