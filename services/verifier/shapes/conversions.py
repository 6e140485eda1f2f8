"""Readings in another form: pairs as intervals, nested lists as matrices, any group as a set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from cepo.answers.notation import normalise
from cepo.answers.reading.numerals import as_number
from services.verifier.shapes.types import Assignment, Grid, Group, Leaf, Piece, Pieces, Shape


def number(shape: Shape) -> Fraction | None:
    """The value of a plain number."""
    return as_number(normalise(shape.text)) if isinstance(shape, Leaf) else None


def is_set(shape: Shape) -> bool:
    """Whether it is a set in braces."""
    return isinstance(shape, Group) and shape.style == "set"


def as_pieces(shape: Shape) -> Pieces | None:
    """A pair as the interval between its elements, and a set as its points."""
    if isinstance(shape, Pieces):
        return shape
    if not isinstance(shape, Group) or not all(isinstance(item, Leaf) for item in shape.items):
        return None
    texts = [item.text for item in shape.items if isinstance(item, Leaf)]
    if shape.style in ("set", "list", "signs"):
        return Pieces(tuple(Piece(text, text, True, True) for text in texts))
    if shape.style in ("round", "square") and len(texts) == 2:
        closed = shape.style == "square"
        return Pieces((Piece(_infinite(texts[0]), _infinite(texts[1]), closed, closed),))
    return None


def _infinite(text: str) -> str:
    return re.sub(r"^\+\s*(?=\\infty)", "", re.sub(r"^-\s+", "-", text))


def rows_of(shape: Shape, *, column: bool) -> list[Sequence[Shape]] | None:
    """The rows of a matrix or of a list of lists; with `column`, the elements of a vector as rows."""
    if isinstance(shape, Grid):
        return list(shape.rows)
    if not isinstance(shape, Group) or shape.style not in ("round", "square", "angle", "list"):
        return None
    nested = all(isinstance(item, Group) and item.style in ("round", "square") for item in shape.items)
    if nested and shape.style != "list":
        return [item.items for item in shape.items if isinstance(item, Group)]
    return [(item,) for item in shape.items] if column and not nested and shape.style != "list" else None


def as_kind(kind: str, shape: Shape) -> Shape:
    """A reading in the form of the kind that the user names."""
    if kind == "interval":
        return as_pieces(shape) or shape
    if kind == "set":
        if isinstance(shape, Leaf):
            return Group("set", (shape,))
        if isinstance(shape, Assignment):
            return Group("set", tuple(value for _, value in shape.pairs))
    if kind == "matrix" and isinstance(shape, Group):
        rows = rows_of(shape, column=False)
        return Grid(tuple(map(tuple, rows))) if rows else shape
    return shape
