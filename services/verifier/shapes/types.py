"""What a structured answer is read into. A text that none of these describes wholly is a `Leaf`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Leaf:
    """One value without structure, which the element comparison takes as it is written."""

    text: str
    is_clause: bool = False
    """Whether the text says more than a value, as in `x^2 for x > 0` or `not x = 5`: no part of it is an answer."""


@dataclass(frozen=True)
class Group:
    """Elements in a style: `1, 2` is a list, `\\{1, 2\\}` a set, and brackets are round, square or angle.

    `1 \\pm \\sqrt{2}` has two elements of style signs, and `A \\cup B` the elements A and B of style `\\cup`.
    """

    style: str
    items: tuple[Shape, ...]

    @property
    def is_sequence(self) -> bool:
        """Whether the elements are a sequence with dots, as in `1, 2, \\ldots, n`."""
        return DOTS in self.items


@dataclass(frozen=True)
class Piece:
    """An interval between two bounds, or the single point at which both bounds are closed and equal."""

    low: str
    high: str
    low_closed: bool
    high_closed: bool


@dataclass(frozen=True)
class Pieces:
    """A union of intervals and points, from interval notation or from inequalities."""

    pieces: tuple[Piece, ...]
    variable: str = ""
    """The unknown of an inequality; empty for interval notation."""


@dataclass(frozen=True)
class Grid:
    """A matrix by its rows."""

    rows: tuple[tuple[Shape, ...], ...]

    @property
    def is_column(self) -> bool:
        """Whether it is a column vector of at least two elements."""
        return len(self.rows) > 1 and all(len(row) == 1 for row in self.rows)


@dataclass(frozen=True)
class Equation:
    """Sides joined by equality signs, as in `y = 2x + 1` or `A = 3 \\cdot 4 = 12`."""

    text: str
    sides: tuple[str, ...]
    names: tuple[str, ...]
    """The sides that only name a quantity, as `y`, `f(x)` or `\\angle ABC`."""
    values: tuple[Shape, ...]
    """The other sides; the last side if all are names."""


@dataclass(frozen=True)
class Assignment:
    """Values of several unknowns, as in `x = 5, y = 3` or `(x, y) = (5, 3)`."""

    pairs: tuple[tuple[str, Shape], ...]


@dataclass(frozen=True)
class Ratio:
    """`a:b` or `a:b:c`."""

    items: tuple[Shape, ...]


@dataclass(frozen=True)
class Congruence:
    """`x \\equiv 2 \\pmod 5`, with or without the name."""

    name: str
    residues: Shape
    modulus: str


@dataclass(frozen=True)
class Relation:
    """Sides joined by other relations, as in `y \\ge 2x`, `x \\ne 3` or `3 \\to 4`."""

    text: str
    operators: tuple[str, ...]
    sides: tuple[str, ...]


Shape = Leaf | Group | Pieces | Grid | Equation | Assignment | Ratio | Congruence | Relation
DOTS = Leaf("\\ldots")
EVERYTHING = Pieces((Piece("-\\infty", "\\infty", False, False),))
EMPTY = Group("set", ())
