"""Reads equations and inequalities of two expressions."""

from __future__ import annotations

import re
from functools import lru_cache

from cepo.answers.reading.arithmetic import symbols
from cepo.answers.reading.expressions import expression
from cepo.answers.reading.nodes import Expression

_RELATION = re.compile(r"(=|<|>|\\le(?![a-zA-Z])|\\ge(?![a-zA-Z]))")
_FLIPPED = {">": "<", "\\ge": "\\le"}
RELATIONS = frozenset({"=", "<", "\\le"})
"""The operators of the trees that `relation` returns."""


@lru_cache(maxsize=8192)
def relation(text: str) -> Expression | None:
    r"""The tree of an equation or inequality of two expressions, `<` and `\\le` turned to the right; None otherwise.

    Example:
        relation("x > 2").op  # "<", of 2 and x
    """
    sides = _RELATION.split(text)
    if len(sides) != 3:
        return None
    left, right = expression(sides[0].strip()), expression(sides[2].strip())
    if left is None or right is None:
        return None
    flipped = _FLIPPED.get(sides[1])
    return Expression(flipped, (right, left)) if flipped else Expression(sides[1], (left, right))


def difference(tree: Expression) -> Expression:
    """The left side of a relation minus its right side."""
    left, right = tree.parts
    return Expression("+", (left, Expression("-", (right,))))


def is_solved(tree: Expression) -> bool:
    """Whether an equation gives the value of a symbol: `x = 2`."""
    left, right = tree.parts
    return any(
        one.op == "symbol" and symbols(one) and not symbols(other) for one, other in ((left, right), (right, left))
    )
