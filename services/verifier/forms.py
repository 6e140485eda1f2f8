"""Compares answers by their structure: lists, sets, tuples, intervals, matrices, relations, ratios and congruences."""

from __future__ import annotations

from cepo.answers.kinds import Kind
from services.verifier.shapes.comparing import Comparer, Same


def same_form(answer: str, reference: str, kind: Kind, same: Same) -> bool | None:
    """Whether two answers are equal by their structure; None if only algebra can tell.

    Example:
        same_form("x = 5, y = 3", "y = 3, x = 5", Kind("math"), decide_element)  # True

    Args:
        same: compares two elements, values without structure.
    """
    return Comparer(kind, same).texts(answer, reference)
