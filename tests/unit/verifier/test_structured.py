"""Structured answers: equal and unequal pairs of every structure, decided in the order of the product."""

from __future__ import annotations

import pytest

from tests.unit.verifier.equality import equal
from tests.unit.verifier.structured import RIGHT, WRONG


@pytest.mark.parametrize("structure", RIGHT)
def test_equal_structures_are_equal(structure: str) -> None:
    assert [pair for pair in RIGHT[structure] if not equal(*pair)] == []


@pytest.mark.parametrize("structure", WRONG)
def test_other_structures_are_not_equal(structure: str) -> None:
    assert [pair for pair in WRONG[structure] if equal(*pair)] == []


@pytest.mark.parametrize("structure", RIGHT)
def test_every_structure_is_equal_to_itself(structure: str) -> None:
    assert [reference for _, reference in RIGHT[structure] if not equal(reference, reference)] == []
