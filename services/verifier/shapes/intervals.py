"""Intervals and their unions, from interval notation, inequalities and absolute values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from cepo.answers.notation import normalise
from cepo.answers.reading.numerals import as_number
from services.verifier.shapes.names import is_constant, is_unknown
from services.verifier.shapes.splitting import cut, elements, enclosed
from services.verifier.shapes.types import EVERYTHING, Piece, Pieces

INFINITY = "\\infty"
_UNBOUNDED = re.compile(r"[-+]?\s*(?:\\infty|infinity|inf)", re.IGNORECASE)
_ABSOLUTE = re.compile(r"(?:\||\\l?vert(?![A-Za-z]))(.+)(?:\||\\r?vert(?![A-Za-z]))", re.DOTALL)
_SHIFTED = re.compile(r"(.+?)\s*([-+])\s*([^-+]+)")
_REAL = re.compile(
    r"\\mathbb\s*\{?R\}?|\\R|\u211d|(?:\\text\s*\{)?\s*(?:the set of )?all (?:real numbers|reals?)(?: numbers)?\s*\}?"
)
FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}


def bracketed(opening: str, content: str, closing: str) -> Pieces | None:
    """The interval that two bounds in brackets describe."""
    bounds, _ = elements(content, bracketed=True)
    if len(bounds) != 2 or opening not in ("(", "[") or closing not in (")", "]"):
        return None
    low, high = map(_bound, bounds)
    return Pieces((Piece(low, high, opening == "[", closing == "]"),)) if low and high else None


def union(text: str) -> Pieces | None:
    r"""A union of intervals and sets of points, or of everything but some points; None for other set operations."""
    parts, _ = cut(text, r"\\cup(?![A-Za-z])|\\bigcup(?![A-Za-z])|(?<=[)\]])\s*U\s*(?=[(\[])")
    if len(parts) == 1:
        return _without(text)
    pieces: list[Piece] = []
    for part in parts:
        read = of_set(part)
        if read is None:
            return None
        pieces += read.pieces
    return Pieces(tuple(pieces))


def is_everything(text: str) -> bool:
    """Whether a text names all real numbers."""
    return _REAL.fullmatch(text) is not None


def of_set(text: str) -> Pieces | None:
    """A set of numbers in interval or set notation."""
    if is_everything(text):
        return EVERYTHING
    brackets = enclosed(text)
    if brackets is None:
        return union(text) if "\\cup" in text or "\\setminus" in text else None
    opening, content, closing = brackets
    if opening == "\\{":
        points, _ = elements(content, bracketed=True)
        return Pieces(tuple(Piece(point, point, True, True) for point in points)) if content else None
    return bracketed(opening, content, closing)


def _without(text: str) -> Pieces | None:
    r"""`(1,5) \setminus \{3\}` as the intervals that remain, if all bounds are plain numbers."""
    parts, _ = cut(text, r"\\setminus(?![A-Za-z])|\\backslash(?![A-Za-z])|\\smallsetminus(?![A-Za-z])|(?<=R\})\s*-")
    if len(parts) != 2:
        return None
    whole, removed = of_set(parts[0]), of_set(parts[1])
    if whole is None or removed is None or any(piece.low != piece.high for piece in removed.pieces):
        return None
    return without(whole, [piece.low for piece in removed.pieces])


def without(whole: Pieces, points: Sequence[str]) -> Pieces | None:
    """A union of intervals less some points; None if a bound or a point is no plain number."""
    values = {point: number for point in points if (number := _number(point)) is not None}
    if len(values) < len(points):
        return None
    pieces: list[Piece] = []
    for piece in whole.pieces:
        low, high = _edge(piece.low), _edge(piece.high)
        if low is None or high is None:
            return None
        inner = sorted((value, point) for point, value in values.items() if low <= value <= high)
        marks = [piece.low, *(point for _, point in inner), piece.high]
        for place, (left, right) in enumerate(pairwise(marks)):
            first, last = place == 0, place == len(marks) - 2
            pieces.append(Piece(left, right, first and piece.low_closed, last and piece.high_closed))
    return Pieces(tuple(piece for piece in pieces if piece.low != piece.high or piece.low_closed), whole.variable)


def inequality(sides: Sequence[str], operators: Sequence[str]) -> Pieces | None:
    """The interval that `x < 3`, `2 \\le x < 5` or `|x - 1| < 4` describes; None if it bounds no single unknown."""
    if len(sides) == 2:
        return _one_bound(sides[0], sides[1], operators[0]) or _one_bound(
            sides[1], sides[0], FLIPPED.get(operators[0], "")
        )
    if len(sides) != 3:
        return None
    if all(operator in (">", "\\ge") for operator in operators):
        sides, operators = sides[::-1], [FLIPPED[operator] for operator in operators[::-1]]
    if not all(operator in ("<", "\\le") for operator in operators):
        return None
    if _ABSOLUTE.fullmatch(sides[1]):
        halves = [_one_bound(sides[1], sides[0], FLIPPED[operators[0]]), _one_bound(sides[1], sides[2], operators[1])]
        return intersection([half for half in halves if half]) if all(halves) else None
    low, high = _bound(sides[0]), _bound(sides[2])
    if not _bounded(sides[1]) or not (low and high and is_constant(low) and is_constant(high)):
        return None
    return Pieces((Piece(low, high, operators[0] == "\\le", operators[1] == "\\le"),), sides[1])


def _one_bound(unknown: str, bound: str, operator: str) -> Pieces | None:
    limit, closed = _bound(bound), operator in ("\\le", "\\ge")
    if operator not in FLIPPED or not limit or not is_constant(limit):
        return None
    if absolute := _ABSOLUTE.fullmatch(unknown):
        return _absolute(absolute[1].strip(), limit, operator)
    if unknown.startswith("-") and _number(limit) is not None:  # `-x < 3` is `x > -3`
        return _one_bound(unknown[1:].strip(), str(-(_number(limit) or 0)), FLIPPED[operator])
    if not _bounded(unknown):
        return None
    if operator in ("<", "\\le"):
        return Pieces((Piece(f"-{INFINITY}", limit, False, closed),), unknown)
    return Pieces((Piece(limit, INFINITY, closed, False),), unknown)


def _absolute(inner: str, limit: str, operator: str) -> Pieces | None:
    centre, name = Fraction(0), inner
    if not _bounded(inner):
        shifted = _SHIFTED.fullmatch(inner)
        number = _number(shifted[3]) if shifted else None
        if shifted is None or number is None or not _bounded(shifted[1]):
            return None
        centre, name = (number if shifted[2] == "-" else -number), shifted[1]
    radius, closed = _number(limit), operator in ("\\le", "\\ge")
    if radius is not None:
        low, high = str(centre - radius), str(centre + radius)
    elif centre == 0:
        low, high = f"-{limit}" if re.fullmatch(r"[\w\\{}]+", limit) else f"-({limit})", limit
    else:
        return None
    if operator in ("<", "\\le"):
        return Pieces((Piece(low, high, closed, closed),), name)
    return Pieces((Piece(f"-{INFINITY}", low, False, closed), Piece(high, INFINITY, closed, False)), name)


def intersection(shapes: Sequence[Pieces]) -> Pieces | None:
    """The numbers in all of several unions, perhaps none; None if a bound is no plain number."""
    common = shapes[0].pieces
    for shape in shapes[1:]:
        overlaps = [_overlap(one, other) for one in common for other in shape.pieces]
        if None in overlaps:
            return None
        common = tuple(piece for overlap in overlaps if overlap for piece in overlap)
    return Pieces(common, shapes[0].variable)


def _overlap(one: Piece, other: Piece) -> tuple[Piece, ...] | None:
    """What two intervals have in common: one interval or none."""
    lows = [(edge, not piece.low_closed, piece.low) for piece in (one, other) if (edge := _edge(piece.low)) is not None]
    highs = [(edge, piece.high_closed, piece.high) for piece in (one, other) if (edge := _edge(piece.high)) is not None]
    if len(lows) < 2 or len(highs) < 2:
        return None
    low, high = max(lows), min(highs)
    if low[0] > high[0] or (low[0] == high[0] and (low[1] or not high[1])):
        return ()
    return (Piece(low[2], high[2], not low[1], high[1]),)


def merged(shape: Pieces) -> tuple[tuple[Fraction | float, bool, Fraction | float, bool], ...] | None:
    """The intervals in order, joined where they touch; None if a bound is no plain number or below the other bound."""
    edges = []
    for piece in shape.pieces:
        low, high = _edge(piece.low), _edge(piece.high)
        if low is None or high is None or low > high or (low == high and not (piece.low_closed and piece.high_closed)):
            return None
        edges.append((low, not piece.low_closed, high, piece.high_closed))
    joined: list[tuple[Fraction | float, bool, Fraction | float, bool]] = []
    for low, low_open, high, high_closed in sorted(edges):
        if joined and (low < joined[-1][2] or (low == joined[-1][2] and (joined[-1][3] or not low_open))):
            before = joined[-1]
            end = max((before[2], before[3]), (high, high_closed))
            joined[-1] = (before[0], before[1], *end)
        else:
            joined.append((low, low_open, high, high_closed))
    return tuple(joined)


def _bound(text: str) -> str:
    text = text.strip()
    if _UNBOUNDED.fullmatch(text):
        return f"-{INFINITY}" if text.startswith("-") else INFINITY
    return text


def _bounded(text: str) -> bool:
    """Whether a side of an inequality is an unknown."""
    return is_unknown(text) and not is_constant(text)


def _number(text: str) -> Fraction | None:
    return as_number(normalise(text))


def _edge(text: str) -> Fraction | float | None:
    if text in (INFINITY, f"-{INFINITY}"):
        return float(text.replace(INFINITY, "inf"))
    return _number(text)
