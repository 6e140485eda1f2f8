"""The tree of an expression."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Expression:
    """A node of an expression tree."""

    op: str
    """`number`, `symbol`, `+`, `*`, `/`, `^`, `-` (negation), `!`, `degree`, `binom`, `root`, or a function's name."""
    parts: tuple[Expression, ...] = ()
    name: str = ""
    """Of a symbol; of a number, how it is written."""
    value: Fraction = Fraction(0)
    """Of a number."""
