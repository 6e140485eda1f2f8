"""Decides whether two answers are equal where strings and exact fractions are enough, without algebra."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from fractions import Fraction

from cepo.answers.choices import chosen, labelled_option
from cepo.answers.kinds import DIGITS, Kind, truth, words
from cepo.answers.notation import normalise, plain
from cepo.answers.quantities import Quantity, Value, read, units_conflict
from cepo.answers.reading.arithmetic import is_unevaluated, rational, symbols
from cepo.answers.reading.nodes import Expression
from cepo.answers.reading.phrases import meaning
from cepo.answers.reading.relations import RELATIONS, difference, is_solved
from cepo.answers.reading.times import same_moment
from cepo.answers.reading.units import DEGREE, conflict
from services.verifier.forms import same_form

EXACT_BITS = 4096
"""Size of the fractions that are computed without a worker."""
_POINTS = 4
_SINGLE = ("math", "number")
"""Kinds whose answers may be one value without structure."""
_RANGE = re.compile(r"\d+(?:-\d+)+")
"""Numbers joined by hyphens, as in `1990-1995` or `5-3-2`, which differ though their differences may be equal."""
_ARTICLE = re.compile(r"^(?:the|an?) +", re.IGNORECASE)
_MIN_RELATIVE = Fraction(1, 10**5)
"""A decimal agrees with an exact number in at least five significant digits."""


def decide(kind: Kind, answer: str, reference: str) -> bool | None:
    """Whether two answers are equal; None if only algebra can tell."""
    if rule := _WORDED.get(kind.name):
        return rule(kind, answer, reference)
    given, wanted = read(answer, kind.decimal_comma), read(reference, kind.decimal_comma)
    if (given.moment and wanted.moment) or (kind.name in _SINGLE and given.quantity and wanted.quantity):
        return decide_element(answer, reference, kind)
    return same_form(plain(answer), plain(reference), kind, decide_element)


def decide_element(answer: str, reference: str, kind: Kind) -> bool | None:
    """Whether one element of a list, tuple, set or matrix equals another; None if only algebra can tell.

    Both are read wholly into a value. Exact numbers are compared exactly, decimals by their digits or the tolerance,
    units by their names, and words and all other texts by their spelling.

    Example:
        decide_element("\\\\frac{2}{4}", "0.5", Kind("math"))  # True
    """
    given, wanted = read(answer, kind.decimal_comma), read(reference, kind.decimal_comma)
    if given.spelling and _spelt(given, kind) == _spelt(wanted, kind):
        return True
    if not kind.unevaluated and _RANGE.fullmatch(given.spelling) and _RANGE.fullmatch(wanted.spelling):
        return False
    if given.moment or wanted.moment:
        return bool(given.moment and wanted.moment and same_moment(given.moment, wanted.moment))
    if given.base or wanted.base:
        return _same_base(given, wanted)
    if given.quantity and wanted.quantity:
        return _same_quantity(given.quantity, wanted.quantity, kind) and _same_label(given, wanted)
    pair = operands(given, wanted, kind)
    if pair is None:
        return None if _is_algebra(given, wanted, kind) else False
    if wanted.quantity and not kind.unevaluated and is_unevaluated(pair[0]):
        return False
    return None if kind.tolerance else _same_rational(*pair, kind)


def _spelt(value: Value, kind: Kind) -> str:
    """A spelling; words without capital letters and a leading article, unless these count."""
    if not value.is_word:
        return value.spelling
    text = value.spelling if kind.case else value.spelling.casefold()
    return meaning(text if kind.articles else _ARTICLE.sub("", text))


def operands(given: Value, wanted: Value, kind: Kind) -> tuple[Expression, Expression] | None:
    r"""The two expressions that must have the same value; None if one is no expression or their units contradict.

    Letters after a number are a unit, or a product if the other side is an expression: `\frac12 mg` is `\frac{mg}{2}`.
    Degrees are a number against an expression with pi: `30^\circ` is `\frac{\pi}{6}`.
    """
    one, other = given.expression, wanted.expression
    if given.node and not given.unit and wanted.product:
        return given.node, wanted.product
    if wanted.node and not wanted.unit and given.product:
        return given.product, wanted.node
    if one is None or other is None:
        return None
    unit, wanted_unit = given.unit, wanted.unit
    if unit and wanted_unit and conflict(unit, wanted_unit):
        if not (kind.convert and unit.factor and wanted_unit.factor and unit.dimension == wanted_unit.dimension):
            return None
        one = Expression("*", (Expression("number", value=unit.factor / wanted_unit.factor), one))
    if unit and not wanted_unit and unit.name == DEGREE and _has_pi(other):
        one = Expression("degree", (one,))
    if wanted_unit and not unit and wanted_unit.name == DEGREE and _has_pi(one):
        other = Expression("degree", (other,))
    return one, other


def _has_pi(node: Expression) -> bool:
    return (node.op == "symbol" and node.name == "pi") or any(map(_has_pi, node.parts))


def _is_algebra(given: Value, wanted: Value, kind: Kind) -> bool:
    """Whether math-verify may compare two values: each part of both is known to it.

    An answer with an integral or a sum is unevaluated, unless the reference has one too.
    """
    one, other = given.operator, wanted.operator
    if not (one or given.expression) or not (other or wanted.expression):
        return False
    return bool(other) or (bool(one) and kind.unevaluated)


def same_decimal(number: Fraction, wanted: Fraction, kind: Kind) -> bool:
    """Whether two numbers agree in the decimals of the kind, one of them being written as a decimal."""
    margin = Fraction(1, 2 * 10**kind.digits)
    if kind.digits == DIGITS:
        margin = min(margin, abs(wanted) * _MIN_RELATIVE)
    return abs(number - wanted) <= margin or (
        kind.digits != DIGITS and round(number, kind.digits) == round(wanted, kind.digits)
    )


def _same_base(given: Value, wanted: Value) -> bool:
    """Whether two numbers have the same digits, and the same base if both say it."""
    one, other = (value.base or (value.spelling.upper(), 0) for value in (given, wanted))
    return one[0] == other[0] and (one[1] == other[1] or 0 in (one[1], other[1]))


def _same_label(given: Value, wanted: Value) -> bool:
    return given.label == wanted.label or not (given.label and wanted.label)


def _same_quantity(given: Quantity, wanted: Quantity, kind: Kind) -> bool:
    if units_conflict(given, wanted):
        return kind.convert and _converted(given, wanted, kind)
    if given.percent == wanted.percent:
        return same_number(given.value, wanted.value, kind, given.decimals, wanted.decimals)
    pairs = [(given.value / (100 if given.percent else 1), wanted.value / (100 if wanted.percent else 1))]
    if not kind.percent_fraction and (wanted.percent or abs(wanted.value) >= 1):
        pairs.append((given.value, wanted.value))
    return any(same_number(a, b, kind, given.decimals, wanted.decimals) for a, b in pairs)


def _converted(given: Quantity, wanted: Quantity, kind: Kind) -> bool:
    one, other = given.measure, wanted.measure
    if not (one and other and one.factor and other.factor and one.dimension == other.dimension):
        return False
    value = given.value * one.factor / other.factor
    return same_number(value, wanted.value, kind, given.decimals, wanted.decimals)


def same_number(number: Fraction, wanted: Fraction, kind: Kind, decimals: int = -1, wanted_decimals: int = -1) -> bool:
    """Whether a number counts as equal to that of the reference.

    Args:
        decimals: how many decimals the number is written with; -1 for an exact form.
        wanted_decimals: the same of the reference.
    """
    if number == wanted:
        return True
    if kind.tolerance:
        return abs(number - wanted) <= kind.margin(wanted)
    if kind.digits != DIGITS:
        return same_decimal(number, wanted, kind)
    if is_precise(number, decimals, kind) and _repeats(wanted):
        return same_decimal(number, wanted, kind)
    return is_precise(wanted, wanted_decimals, kind) and _repeats(number) and same_decimal(number, wanted, kind)


def is_precise(number: Fraction, decimals: int, kind: Kind) -> bool:
    """Whether a decimal has the digits of the kind behind the point, and this number of significant ones."""
    return decimals >= kind.digits and abs(number) * 10**decimals >= 10 ** (kind.digits - 1)


def _repeats(number: Fraction) -> bool:
    """Whether the decimals of a number have no end."""
    rest = number.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest > 1


def _same_rational(one: Expression, other: Expression, kind: Kind) -> bool | None:
    """Whether two expressions have the same exact value at fixed points; None if a value is no bounded fraction."""
    if one == other:
        return True
    if one.op in RELATIONS or other.op in RELATIONS:
        return _same_relation(one, other)
    names = symbols(one) | symbols(other)
    if not names:
        number, wanted = rational(one, {}, EXACT_BITS), rational(other, {}, EXACT_BITS)
        if number is None or wanted is None:
            return None
        return number == wanted or (kind.digits != DIGITS and same_decimal(number, wanted, kind))
    for index in range(_POINTS):
        point = {name: _coordinate(name, index) for name in names}
        number, wanted = rational(one, point, EXACT_BITS), rational(other, point, EXACT_BITS)
        if number is None or wanted is None:
            return None
        if number != wanted:
            return False
    return True


def _same_relation(one: Expression, other: Expression) -> bool | None:
    """Whether the sides of two equations or inequalities differ by the same function, up to a constant factor."""
    if one.op != other.op or (one.op == "=" and is_solved(other) and not is_solved(one)):
        return False
    names = symbols(one) | symbols(other)
    ratio: Fraction | None = None
    for index in range(_POINTS):
        point = {name: _coordinate(name, index) for name in names}
        gaps = [rational(difference(side), point, EXACT_BITS) for side in (one, other)]
        if gaps[0] is None or gaps[1] is None:
            return None
        if not gaps[0] or not gaps[1]:
            if gaps[0] == gaps[1]:
                continue
            return False
        ratio = gaps[0] / gaps[1] if ratio is None else ratio
        if gaps[0] != ratio * gaps[1] or (one.op != "=" and ratio < 0):
            return False
    return ratio is not None


def _coordinate(name: str, index: int) -> Fraction:
    """A fixed value of a symbol: an integer at the first points, so that it may be an exponent."""
    hashed = zlib.crc32(f"{name}/{index}".encode())
    if index < _POINTS - 1:
        return Fraction(hashed % 29 + 3)
    return -Fraction(hashed % 9973 + 7, 211)


def _text(kind: Kind, answer: str, reference: str) -> bool:
    one, other = words(answer, kind), words(reference, kind)
    return meaning(one) == meaning(other) if other else normalise(answer) == normalise(reference)


def _yesno(_: Kind, answer: str, reference: str) -> bool:
    return truth(answer) is truth(reference)


def _choice(_: Kind, answer: str, reference: str) -> bool:
    listed = labelled_option(reference)
    return chosen(answer, listed) == chosen(reference, {})


_WORDED: dict[str, Callable[[Kind, str, str], bool | None]] = {"text": _text, "yesno": _yesno, "choice": _choice}
