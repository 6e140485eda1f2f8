"""Equations, inequalities and other relations between the sides of a text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from services.verifier.shapes import intervals
from services.verifier.shapes.conversions import as_pieces
from services.verifier.shapes.names import is_name, is_unknown
from services.verifier.shapes.splitting import cut, elements, enclosed
from services.verifier.shapes.types import (
    EVERYTHING,
    Assignment,
    Congruence,
    Equation,
    Group,
    Leaf,
    Pieces,
    Relation,
    Shape,
)

Reader = Callable[[str], Shape]
_SIGNS = {
    "=": "== := &= \\coloneqq",
    "<": "\\lt",
    ">": "\\gt",
    "\\le": "<= \\leq \\leqslant \u2264",
    "\\ge": ">= \\geq \\geqslant \u2265",
    "\\ne": "!= <> \\neq \\not= \u2260",
    "\\approx": "\\thickapprox \u2248",
    "\\in": "\u2208",
    "\\notin": "\\not\\in \u2209",
    "\\to": "-> \\rightarrow \u2192",
    "\\Rightarrow": "=> \\implies \u21d2",
    "\\equiv": "\u2261",
}
_CANONICAL = {spelling: sign for sign, others in _SIGNS.items() for spelling in (sign, *others.split())}
_OPERATOR = (
    r"\\not\s*=|\\not\s*\\in(?![A-Za-z])|&=|:=|==|<=|>=|!=|<>|=>|->|[=<>\u2264\u2265\u2260\u2248\u2208\u2209\u2192\u21d2\u2261]"
    r"|\\(?:leq?|leqslant|geq?|geqslant|neq?|lt|gt|in|notin|ni|approx|thickapprox|equiv|to|rightarrow|Rightarrow|implies"
    r"|mapsto|iff|Leftrightarrow|leftrightarrow|subset|subseteq|supset|supseteq|sim|simeq|cong|propto|mid|nmid|ll|gg|perp"
    r"|parallel|coloneqq)(?![A-Za-z])"
)
_MODULUS = re.compile(
    r"\\pmod\s*(?:\{([^{}]*)\}|(\w))|\(?\s*(?:\\[bp]?mod(?![A-Za-z])|(?<![A-Za-z\\])mod(?![A-Za-z]))\s*(?:\{([^{}]*)\}|(\w+))\s*\)?"
)
_ORDERED = ("<", ">", "\\le", "\\ge")


def relation(text: str, read: Reader) -> Shape | None:
    """The equation, interval, set or relation that a text states; None without a relation sign at the top level."""
    sides, signs = cut(text, _OPERATOR)
    if not signs:
        return None
    operators = [_CANONICAL.get(re.sub(r"\s", "", sign), sign) for sign in signs]
    if all(operator == "=" for operator in operators):
        return _equation(text, sides, read)
    if operators == ["\\in"] and (is_name(sides[0]) or not sides[0]):
        shape = read(sides[1])
        if isinstance(shape, Group) and shape.style in ("round", "square"):
            shape = as_pieces(shape) or shape
        named = isinstance(shape, Pieces) and not shape.variable and is_unknown(sides[0])
        return replace(shape, variable=sides[0]) if named and isinstance(shape, Pieces) else shape
    if all(operator in _ORDERED for operator in operators) and all(sides):
        interval = intervals.inequality(sides, operators)
        if interval is not None:
            return interval
    if operators == ["\\ne"] and is_name(sides[0]):
        points, _ = elements(sides[1], bracketed=True)
        rest = intervals.without(EVERYTHING, points)
        if rest is not None:
            return Pieces(rest.pieces, sides[0])
    return Relation(text, tuple(operators), tuple(sides))


def _equation(text: str, sides: list[str], read: Reader) -> Shape:
    shown = [side for side in sides if side]
    if not shown:
        return Leaf(text)
    if len(shown) == 1:
        return read(shown[0]) if not sides[0] else Leaf(text)  # `= 73` states 73
    if len(shown) == 2 and (pairs := _named_tuple(shown[0], shown[1], read)):
        return pairs
    names = tuple(side for side in shown if is_name(side))
    values = tuple(read(side) for side in shown if not is_name(side)) or (read(shown[-1]),)
    return Equation(text, tuple(shown), names, values)


def _named_tuple(left: str, right: str, read: Reader) -> Assignment | None:
    """`(x, y) = (5, 3)` as values by name."""
    brackets = enclosed(left)
    if brackets is None or brackets[0] != "(":
        return None
    names, value = elements(brackets[1], bracketed=True)[0], read(right)
    if len(names) < 2 or not isinstance(value, Group) or len(value.items) != len(names) or not all(map(is_name, names)):
        return None
    if any(isinstance(item, Group) for item in value.items):
        return None
    return Assignment(tuple(zip(names, value.items, strict=True)))


def congruence(text: str, read: Reader) -> Congruence | None:
    r"""`x \equiv 2 \pmod 5`, `2 \pmod 5` or `x \equiv 1, 4 (mod 6)`."""
    text = re.sub(r"\\(?:text|mathrm|operatorname)\s*\{\s*mod\s*\}", " mod ", text)
    modulus = _MODULUS.search(text)
    if modulus is None or modulus[0].count("(") != modulus[0].count(")"):
        return None
    if text[modulus.end() :].strip() or not text[: modulus.start()].strip():
        return None
    sides, signs = cut(text[: modulus.start()].strip(), r"\\equiv(?![A-Za-z])|\\cong(?![A-Za-z])|\u2261|=")
    if len(sides) > 2:
        return None
    name = sides[0] if signs else ""
    divisor = next(part for part in modulus.groups() if part is not None)
    return Congruence(name, read(sides[-1]), divisor.strip())
