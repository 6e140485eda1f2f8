"""Compares two readings element by element.

A result is True, False, or None where the element comparison cannot decide without algebra. The reference decides what
an answer may look like: a tuple may be written as a list, a list not as a matrix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain

from cepo.answers.kinds import Kind
from cepo.answers.notation import normalise
from cepo.answers.quantities import read as value
from services.verifier.shapes import equating
from services.verifier.shapes.conversions import as_kind, as_pieces, is_set, number, rows_of
from services.verifier.shapes.intervals import merged
from services.verifier.shapes.logic import Verdict3, every, some
from services.verifier.shapes.names import same_name
from services.verifier.shapes.reading import read, read_list
from services.verifier.shapes.types import (
    DOTS,
    Assignment,
    Congruence,
    Equation,
    Grid,
    Group,
    Leaf,
    Piece,
    Pieces,
    Ratio,
    Relation,
    Shape,
)

Same = Callable[[str, str, Kind], Verdict3]
_NUMBERS = re.compile(r"\d+(?::\d+)+|\d+-\d+")
MAX_REPEATS = 3
"""A set may be written with its elements repeated, up to this multiple; a longer list is a list of guesses."""


class Comparer:
    """Compares readings as one kind of answer, with a comparison of elements."""

    def __init__(self, kind: Kind, same: Same) -> None:
        self.kind = kind
        self.same = same

    def with_kind(self, kind: Kind) -> Comparer:
        """The same comparison for another kind."""
        return Comparer(kind, self.same)

    def texts(self, answer: str, reference: str) -> Verdict3:
        """Whether two answers are equal as their structures say."""
        given, wanted = read(answer), read(reference)
        if isinstance(given, Leaf) and isinstance(wanted, Leaf) and self.kind.name != "equation":
            return self.same(answer, reference, self.kind)
        if isinstance(given, Leaf) and isinstance(wanted, Group) and "," in answer:
            given = read_list(answer)
        if normalise(answer) == normalise(reference):
            return True
        return self.equal(as_kind(self.kind.name, given), as_kind(self.kind.name, wanted))

    def equal(self, given: Shape, wanted: Shape) -> Verdict3:
        """Whether an answer is equal to a reference."""
        if given == wanted:
            return True
        if isinstance(given, Leaf) and given.is_clause and not isinstance(wanted, Leaf):
            return False
        if isinstance(wanted, Equation):
            return equating.equation(self, given, wanted)
        if isinstance(given, Equation):
            return equating.restated(self, given, wanted)
        if isinstance(wanted, Assignment):
            return equating.assigned(self, given, wanted)
        if isinstance(given, Assignment):
            return equating.unnamed(self, given, wanted)
        return self._unnamed(given, wanted)

    def _unnamed(self, given: Shape, wanted: Shape) -> Verdict3:
        if isinstance(wanted, Pieces) or isinstance(given, Pieces):
            one, other = as_pieces(given), as_pieces(wanted)
            return self._pieces(one, other) if one and other else False
        match wanted:
            case Leaf():
                return self._leaf(given, wanted)
            case Group():
                return self._group(given, wanted)
            case Grid():
                return self._grid(given, wanted)
            case Ratio():
                return self._ratio(given, wanted)
            case Congruence():
                return equating.congruent(self, given, wanted)
            case Relation():
                return equating.related(self, given, wanted)
        raise TypeError(f"no comparison with {wanted}")

    def _leaf(self, given: Shape, wanted: Leaf) -> Verdict3:
        if isinstance(given, Relation) and set(given.operators) <= {"=", "\\approx"}:
            return equating.approximated(self, given, wanted)
        if isinstance(given, Group) and len(given.items) == 1:
            return self.equal(given.items[0], wanted)
        if isinstance(given, Ratio) and (parts := _parts(wanted.text)):
            return self._ratio(given, parts) if ":" in wanted.text else self.in_order(given.items, parts.items)
        if isinstance(given, Ratio) and len(given.items) == 2:
            return self._quotient(given, wanted, over=True)
        return self.elements(given.text, wanted.text) if isinstance(given, Leaf) else False

    def elements(self, given: str, wanted: str) -> Verdict3:
        """Whether two values without structure are equal."""
        if DOTS.text in (given, wanted):
            return given == wanted
        return self.same(given, wanted, self.kind)

    def _quotient(self, ratio: Ratio, leaf: Leaf, *, over: bool) -> Verdict3:
        above, below = (item.text if isinstance(item, Leaf) else "" for item in ratio.items)
        if not above or not below:
            return False
        quotient = f"\\frac{{{above}}}{{{below}}}"
        return self.elements(quotient, leaf.text) if over else self.elements(leaf.text, quotient)

    def _group(self, given: Shape, wanted: Group) -> Verdict3:
        if isinstance(given, Leaf):
            return self.equal(given, wanted.items[0]) if len(wanted.items) == 1 else False
        if isinstance(given, Grid) and given.is_column and wanted.style in ("round", "angle"):
            given = Group("round", tuple(row[0] for row in given.rows))
        if not isinstance(given, Group):
            return False
        if given.style == "set" != wanted.style and len(given.items) == 1 < len(wanted.items):
            return self.equal(given.items[0], wanted)
        ordered = self._ordered(given, wanted)
        if ordered is None:
            return False
        return self.in_order(given.items, wanted.items) if ordered else self.in_any_order(given.items, wanted.items)

    def _ordered(self, given: Group, wanted: Group) -> bool | None:
        """Whether the order matters; None if a group of this style cannot stand for the reference."""
        if self.kind.name == "set":
            return False
        if self.kind.name == "tuple":
            return True
        if given.style.startswith("\\") or wanted.style.startswith("\\"):  # unions of sets that are only named
            return False if given.style == wanted.style else None
        if wanted.style == "list" and given.style == "square" and all(map(_is_words, given.items)):
            return False
        loose = ("list", "set", "signs")
        if given.is_sequence or wanted.is_sequence:
            return True if {given.style, wanted.style} <= {"list", "set"} or given.style == wanted.style else None
        if wanted.style in loose:
            if given.style in loose:
                return False
            return True if wanted.style == "list" and (given.style != "square" or len(given.items) > 2) else None
        if given.style == wanted.style or given.style == "list":
            return True if given.style != "list" or wanted.style != "square" or len(wanted.items) != 2 else None
        if {given.style, wanted.style} <= {"round", "angle"} or len(wanted.items) > 2:
            return None if given.style in loose else True
        return None

    def in_order(self, given: Sequence[Shape], wanted: Sequence[Shape]) -> Verdict3:
        """Whether two groups have equal elements in the same order."""
        if len(given) != len(wanted):
            return False
        return every(self.equal(one, other) for one, other in zip(given, wanted, strict=True))

    def in_any_order(self, given: Sequence[Shape], wanted: Sequence[Shape]) -> Verdict3:
        """Whether two groups have equal elements, in any order and with repetitions."""
        if len(given) > MAX_REPEATS * len(wanted):
            return False
        results: dict[tuple[int, int], Verdict3] = {}

        def at(row: int, column: int) -> Verdict3:
            if (row, column) not in results:
                one, other = given[row], wanted[column]
                results[row, column] = is_set(one) == is_set(other) and self.equal(one, other)  # {1} is not 1 in a set
            return results[row, column]

        rows, columns = range(len(given)), range(len(wanted))
        matched = (some(at(row, column) for column in _nearest(columns, row)) for row in rows)
        covered = (some(at(row, column) for row in _nearest(rows, column)) for column in columns)
        return every(chain(matched, covered))

    def _pieces(self, given: Pieces, wanted: Pieces) -> Verdict3:
        if given.variable and wanted.variable and not same_name(given.variable, wanted.variable):
            return False
        one, other = merged(given), merged(wanted)
        if one is not None and other is not None:
            return one == other
        if len(given.pieces) != len(wanted.pieces):
            return False
        rows = range(len(wanted.pieces))
        return every(some(self._piece(piece, wanted.pieces[row]) for row in rows) for piece in given.pieces)

    def _piece(self, given: Piece, wanted: Piece) -> Verdict3:
        if (given.low_closed, given.high_closed) != (wanted.low_closed, wanted.high_closed):
            return False
        return every([self._bound(given.low, wanted.low), self._bound(given.high, wanted.high)])

    def _bound(self, given: str, wanted: str) -> Verdict3:
        if "\\infty" in (given.lstrip("-"), wanted.lstrip("-")):
            return given == wanted
        return self.elements(given, wanted)

    def _grid(self, given: Shape, wanted: Grid) -> Verdict3:
        rows = rows_of(given, column=wanted.is_column)
        if rows is None or [len(row) for row in rows] != [len(row) for row in wanted.rows]:
            return False
        return every(self.in_order(row, other) for row, other in zip(rows, wanted.rows, strict=True))

    def _ratio(self, given: Shape, wanted: Ratio) -> Verdict3:
        if isinstance(given, Leaf) and (parts := _parts(given.text)):
            if ":" not in given.text:
                return self.in_order(parts.items, wanted.items)
            given = parts
        if isinstance(given, Leaf) and len(wanted.items) == 2:
            return self._quotient(wanted, given, over=False)
        if not isinstance(given, Ratio):
            return False
        one, other = ([term for item in side.items if (term := number(item)) is not None] for side in (given, wanted))
        if len(one) != len(other) or len(one) < len(given.items) or len(other) < len(wanted.items):
            return self.in_order(given.items, wanted.items)
        return all(a * other[0] == b * one[0] for a, b in zip(one, other, strict=True))  # 4:6 is 2:3


def _parts(text: str) -> Ratio | None:
    """What reads like a time or a range, `10:15:20` or `18-29`, as a ratio; None for other texts."""
    parts = re.split("[:-]", text) if _NUMBERS.fullmatch(text) else []
    return Ratio(tuple(map(Leaf, parts))) if parts else None


def _is_words(shape: Shape) -> bool:
    return isinstance(shape, Leaf) and value(shape.text).is_word


def _nearest(places: range, place: int) -> list[int]:
    """The places with the same one first, as equal lists are mostly in the same order."""
    return [place, *(other for other in places if other != place)] if place in places else list(places)
