"""Compares two readings element by element.

A result is True, False, or None where the element comparison cannot decide without algebra. The reference decides what
an answer may look like: a tuple may be written as a list, a list not as a matrix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

from cepo.answers.kinds import Kind
from cepo.answers.notation import as_number, normalise
from services.verifier.shapes.intervals import merged
from services.verifier.shapes.names import is_constant, restates, same_name
from services.verifier.shapes.reading import read
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

Verdict3 = bool | None
Same = Callable[[str, str, Kind], Verdict3]
MAX_REPEATS = 3
"""A set may be written with so many times its elements; a longer list is a list of guesses."""
_ALGEBRAIC = ("<", ">", "\\le", "\\ge")
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne"}
_LATIN = re.compile(r"([A-Za-z])(?:_\s*\{?\s*(\w+)\s*\}?)?")
_APPROXIMATE = Kind("number", tolerance=as_number("0.01") or 0, relative=True)  # type: ignore[arg-type]


def every(results: Iterable[Verdict3]) -> Verdict3:
    """Whether all results are True; a False decides, then a None."""
    unknown = False
    for result in results:
        if result is False:
            return False
        unknown = unknown or result is None
    return None if unknown else True


def some(results: Iterable[Verdict3]) -> Verdict3:
    """Whether a result is True; a True decides, then a None."""
    unknown = False
    for result in results:
        if result:
            return True
        unknown = unknown or result is None
    return None if unknown else False


class Comparer:
    """Compares readings as one kind of answer, with a comparison of elements."""

    def __init__(self, kind: Kind, same: Same) -> None:
        self._kind = kind
        self._same = same

    def texts(self, answer: str, reference: str) -> Verdict3:
        """Whether two answers are equal as their structures say."""
        given, wanted = read(answer), read(reference)
        if normalise(answer) == normalise(reference):
            return True
        if isinstance(given, Leaf) and isinstance(wanted, Leaf):
            return False if self._kind.name == "equation" else self._same(answer, reference, self._kind)
        return self.equal(_as_kind(self._kind.name, given), _as_kind(self._kind.name, wanted))

    def equal(self, given: Shape, wanted: Shape) -> Verdict3:
        """Whether an answer is equal to a reference."""
        if given == wanted:
            return True
        if isinstance(wanted, Equation):
            return self._equation(given, wanted)
        if isinstance(given, Equation):
            return self._restated(given, wanted)
        if isinstance(wanted, Assignment):
            return self._assigned(given, wanted)
        if isinstance(given, Assignment):
            return self._unnamed(given, wanted)
        if isinstance(wanted, Pieces) or isinstance(given, Pieces):
            one, other = _as_pieces(given), _as_pieces(wanted)
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
                return self._congruence(given, wanted)
            case Relation():
                return self._relation(given, wanted)

    def _leaf(self, given: Shape, wanted: Leaf) -> Verdict3:
        if isinstance(given, Relation) and set(given.operators) == {"\\approx"}:
            return self._approximated(given, wanted)
        if isinstance(given, Group) and len(given.items) == 1:
            return self.equal(given.items[0], wanted)
        if isinstance(given, Ratio) and len(given.items) == 2:
            return self._quotient(given, wanted, over=True)
        return self._elements(given.text, wanted.text) if isinstance(given, Leaf) else False

    def _elements(self, given: str, wanted: str) -> Verdict3:
        if DOTS.text in (given, wanted):
            return given == wanted
        return self._same(given, wanted, self._kind)

    def _approximated(self, given: Relation, wanted: Leaf) -> Verdict3:
        """`\\sqrt{2} \\approx 1.41` states the exact value and rounds it."""
        sides = [read(side) for side in given.sides]
        if not all(isinstance(side, Leaf) for side in sides):
            return False
        exact = [self.equal(side, wanted) for side in sides if side != Leaf("")]
        rounded = [self._same(given.sides[-1], side, _APPROXIMATE) for side in given.sides[:-1] if side]
        return every([some(exact[:1] if rounded else exact), *rounded]) if exact else False

    def _quotient(self, ratio: Ratio, leaf: Leaf, *, over: bool) -> Verdict3:
        above, below = (item.text if isinstance(item, Leaf) else "" for item in ratio.items)
        if not above or not below:
            return False
        quotient = f"\\frac{{{above}}}{{{below}}}"
        return self._elements(quotient, leaf.text) if over else self._elements(leaf.text, quotient)

    def _group(self, given: Shape, wanted: Group) -> Verdict3:
        if isinstance(given, Leaf):
            return self.equal(given, wanted.items[0]) if len(wanted.items) == 1 else False
        if isinstance(given, Grid) and given.is_column and wanted.style in ("round", "angle"):
            given = Group("round", tuple(row[0] for row in given.rows))
        if not isinstance(given, Group):
            return False
        ordered = self._ordered(given, wanted)
        if ordered is None:
            return False
        return self._in_order(given.items, wanted.items) if ordered else self._in_any_order(given.items, wanted.items)

    def _ordered(self, given: Group, wanted: Group) -> bool | None:
        """Whether the order matters; None if a group of this style cannot stand for the reference."""
        if self._kind.name == "set":
            return False
        if self._kind.name == "tuple":
            return True
        if given.style.startswith("\\") or wanted.style.startswith("\\"):  # unions of sets that are only named
            return False if given.style == wanted.style else None
        loose = ("list", "set", "signs")
        if given.is_sequence or wanted.is_sequence:
            return True if {given.style, wanted.style} <= {"list", wanted.style} else None
        if wanted.style in loose:
            if given.style in loose:
                return False
            return True if wanted.style == "list" else None
        if given.style == wanted.style or given.style == "list":
            return True if given.style != "list" or wanted.style != "square" or len(wanted.items) != 2 else None
        if {given.style, wanted.style} <= {"round", "angle"} or len(wanted.items) > 2:
            return None if given.style in loose else True
        return None

    def _in_order(self, given: Sequence[Shape], wanted: Sequence[Shape]) -> Verdict3:
        if len(given) != len(wanted):
            return False
        return every(self.equal(one, other) for one, other in zip(given, wanted, strict=True))

    def _in_any_order(self, given: Sequence[Shape], wanted: Sequence[Shape]) -> Verdict3:
        if len(given) > MAX_REPEATS * len(wanted):
            return False
        results: dict[tuple[int, int], Verdict3] = {}

        def at(row: int, column: int) -> Verdict3:
            if (row, column) not in results:
                results[row, column] = self.equal(given[row], wanted[column])
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
        return self._elements(given, wanted)

    def _grid(self, given: Shape, wanted: Grid) -> Verdict3:
        rows = _rows(given, column=wanted.is_column)
        if rows is None or [len(row) for row in rows] != [len(row) for row in wanted.rows]:
            return False
        return every(self._in_order(row, other) for row, other in zip(rows, wanted.rows, strict=True))

    def _ratio(self, given: Shape, wanted: Ratio) -> Verdict3:
        if isinstance(given, Leaf) and len(wanted.items) == 2:
            return self._quotient(wanted, given, over=False)
        if not isinstance(given, Ratio):
            return False
        terms = [[_number(item) for item in side.items] for side in (given, wanted)]
        if None in terms[0] + terms[1] or len(terms[0]) != len(terms[1]):
            return self._in_order(given.items, wanted.items)
        first, second = terms
        return all(a * second[0] == b * first[0] for a, b in zip(first, second, strict=True))  # type: ignore[operator]

    def _congruence(self, given: Shape, wanted: Congruence) -> Verdict3:
        if not isinstance(given, Congruence):
            return False
        if given.name and wanted.name and not same_name(given.name, wanted.name):
            return False
        modulus = self._elements(given.modulus, wanted.modulus)
        one, other, divisor = _number(given.residues), _number(wanted.residues), _number(Leaf(wanted.modulus))
        if one is not None and other is not None and divisor:
            return every([modulus, (one - other) % divisor == 0])
        return every([modulus, self.equal(given.residues, wanted.residues)])

    def _relation(self, given: Shape, wanted: Relation) -> Verdict3:
        if not isinstance(given, Relation):
            return False
        direct = [self._sides(given.operators, given.sides, wanted)]
        if all(operator in _FLIPPED for operator in given.operators):
            flipped = tuple(_FLIPPED[operator] for operator in given.operators[::-1])
            direct.append(self._sides(flipped, given.sides[::-1], wanted))
        if all(operator in _ALGEBRAIC for operator in given.operators + wanted.operators):
            direct.append(self._elements(given.text, wanted.text))
        return some(direct)

    def _sides(self, operators: tuple[str, ...], sides: tuple[str, ...], wanted: Relation) -> Verdict3:
        if operators != wanted.operators:
            return False
        pairs = zip(sides, wanted.sides, strict=True)
        return every(one == other or bool(one and other) and self.equal(read(one), read(other)) for one, other in pairs)

    def _equation(self, given: Shape, wanted: Equation) -> Verdict3:
        named = len(wanted.names) == 1 and len(wanted.values) == 1
        if not isinstance(given, Equation):
            return self.equal(given, wanted.values[0]) if named and self._kind.name != "equation" else False
        if named and any(same_name(name, wanted.names[0]) for name in given.names):
            values = [value for value in given.values if not _restating(value, wanted.values[0])]
            return every(self.equal(value, wanted.values[0]) for value in values)
        if len(given.sides) != 2 or len(wanted.sides) != 2:
            return self._in_order(*([read(side) for side in shape.sides] for shape in (given, wanted)))
        if given.names and wanted.names and is_constant_shape(wanted.values[0]):
            return False
        return self._elements(given.text, wanted.text)

    def _restated(self, given: Equation, wanted: Shape) -> Verdict3:
        """Whether every side that states a value states that of the reference, as in `A = 3 \\cdot 4 = 12`."""
        if self._kind.name == "equation":
            return False
        if not given.names and len(given.sides) == 2 and isinstance(wanted, Relation):
            return False
        values = [value for value in given.values if not _restating(value, wanted)]
        return every(self.equal(value, wanted) for value in values) if values else False

    def _assigned(self, given: Shape, wanted: Assignment) -> Verdict3:
        if isinstance(given, Group) and given.style in ("list", "round", "angle"):
            return self._in_order(given.items, [value for _, value in wanted.pairs])
        if not isinstance(given, Assignment) or len(given.pairs) != len(wanted.pairs):
            return False
        return every(
            some(self.equal(value, other) for name, value in given.pairs if same_name(name, wanted_name))
            for wanted_name, other in wanted.pairs
        )

    def _unnamed(self, given: Assignment, wanted: Shape) -> Verdict3:
        """Values by name against a reference without names: in the order of the names, or any order for `x_1, x_2`."""
        if not isinstance(wanted, Group) or len(given.pairs) != len(wanted.items):
            return False
        keys = [_LATIN.fullmatch(name.strip()) for name, _ in given.pairs]
        pairs = list(given.pairs)
        if all(keys):
            pairs = [pair for _, pair in sorted(zip([(key[1], key[2] or "") for key in keys if key], pairs, strict=True), key=lambda one: one[0])]
        values = [value for _, value in pairs]
        indexed = len({key[1] for key in keys if key}) == 1 and all(keys)
        if indexed and wanted.style in ("list", "set", "signs"):
            return self._in_any_order(values, wanted.items)
        return self._in_order(values, wanted.items) if wanted.style != "set" else False


def is_constant_shape(shape: Shape) -> bool:
    """Whether a value has no unknown in it."""
    return isinstance(shape, Leaf) and is_constant(shape.text)


def _restating(value: Shape, wanted: Shape) -> bool:
    """Whether a side is an expression in several unknowns whose value the equation states: `2a + b = 12` for `12`."""
    return isinstance(value, Leaf) and is_constant_shape(wanted) and restates(value.text)


def _nearest(places: range, place: int) -> list[int]:
    """The places with the same one first, as equal lists are mostly in the same order."""
    return [place, *(other for other in places if other != place)] if place in places else list(places)


def _number(shape: Shape):  # type: ignore[no-untyped-def]
    return as_number(normalise(shape.text)) if isinstance(shape, Leaf) else None


def _as_pieces(shape: Shape) -> Pieces | None:
    if isinstance(shape, Pieces):
        return shape
    if not isinstance(shape, Group) or not all(isinstance(item, Leaf) for item in shape.items):
        return None
    texts = [item.text for item in shape.items if isinstance(item, Leaf)]
    if shape.style in ("set", "list", "signs"):
        return Pieces(tuple(Piece(text, text, True, True) for text in texts))
    if shape.style in ("round", "square") and len(texts) == 2:
        closed = shape.style == "square"
        return Pieces((Piece(*map(_infinite, texts), closed, closed),))
    return None


def _infinite(text: str) -> str:
    return re.sub(r"^\+\s*(?=\\infty)", "", re.sub(r"^-\s+", "-", text))


def _rows(shape: Shape, *, column: bool) -> list[Sequence[Shape]] | None:
    if isinstance(shape, Grid):
        return list(shape.rows)
    if not isinstance(shape, Group) or shape.style not in ("round", "square", "angle", "list"):
        return None
    if all(isinstance(item, Group) and item.style in ("round", "square") for item in shape.items):
        return [item.items for item in shape.items if isinstance(item, Group)]
    return [(item,) for item in shape.items] if column and shape.style != "list" else None


def _as_kind(kind: str, shape: Shape) -> Shape:
    """A reading in the form of the kind that the user names."""
    if kind == "interval":
        return _as_pieces(shape) or shape
    if kind == "set":
        if isinstance(shape, Leaf):
            return Group("set", (shape,))
        if isinstance(shape, Assignment):
            return Group("set", tuple(value for _, value in shape.pairs))
    if kind == "matrix" and isinstance(shape, Group):
        rows = _rows(shape, column=False)
        return Grid(tuple(map(tuple, rows))) if rows else shape
    return shape
