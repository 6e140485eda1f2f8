"""Compares expressions by their values at fixed points, in high precision. It runs inside a worker process.

Expressions without symbols are evaluated to 60 digits and, if these agree, to 500: the values must agree relative to
their size. Expressions with symbols must agree at every point where both are defined.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable
from fractions import Fraction

from mpmath import mp, mpc, mpf

from cepo.answers.reading.arithmetic import rational, symbols
from cepo.answers.reading.nodes import Expression
from cepo.answers.reading.relations import RELATIONS, difference

EXACT_BITS = 50_000
"""Size of the fractions that are compared exactly."""
MAX_LOG2 = 100_000
"""Powers and factorials of more bits have no value."""
_DIGITS = (60, 500)
_GUARD_DIGITS = 15
_POINTS = 6
_MIN_POINTS = 3
_FUNCTIONS: dict[str, Callable[..., mpc]] = {
    "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "cot": mp.cot, "sec": mp.sec, "csc": mp.csc, "arcsin": mp.asin,
    "arccos": mp.acos, "arctan": mp.atan, "arccot": mp.acot, "sinh": mp.sinh, "cosh": mp.cosh, "tanh": mp.tanh,
    "abs": abs, "floor": mp.floor, "ceil": mp.ceil, "cbrt": mp.cbrt,
}  # fmt: skip


class _Undefined(Exception):
    """The expression has no value at this point."""


def equal(one: Expression, other: Expression) -> bool:
    """Whether two expressions have the same value wherever both are defined.

    Example:
        equal(expression("\\\\sqrt{8}"), expression("2\\\\sqrt2"))  # True
    """
    if _equal(one, other, log_base=0):
        return True
    return (_has_log(one) or _has_log(other)) and _equal(one, other, log_base=10)


def number(node: Expression) -> Fraction | None:
    """The real value of an expression without symbols, to 50 digits; None if it has none."""
    if symbols(node):
        return None
    exact = rational(node, {}, EXACT_BITS)
    if exact is not None:
        return exact
    with mp.workdps(_DIGITS[0]):
        try:
            value = _Point(0, 0).value(node)
        except (_Undefined, ArithmeticError, ValueError, TypeError):
            return None
        if abs(mp.im(value)) > abs(mp.re(value)) * mpf(10) ** -40:
            return None
        return Fraction(str(mp.nstr(mp.re(value), 50, min_fixed=-mp.inf, max_fixed=mp.inf)))


def _has_log(node: Expression) -> bool:
    return (node.op == "log" and len(node.parts) == 1) or any(map(_has_log, node.parts))


def _equal(one: Expression, other: Expression, log_base: int) -> bool:
    if one.op in RELATIONS or other.op in RELATIONS:
        return one.op == other.op and _proportional(difference(one), difference(other), one.op, log_base)
    names = symbols(one) | symbols(other)
    if not names:
        exact, wanted = rational(one, {}, EXACT_BITS), rational(other, {}, EXACT_BITS)
        if exact is not None and wanted is not None:
            return exact == wanted
        return all(_agree(one, other, _Point(0, log_base), digits) is True for digits in _DIGITS)
    agreed = 0
    for index in range(_POINTS):
        result = _agree(one, other, _Point(index, log_base), _DIGITS[0])
        if result is False:
            return False
        agreed += result is True
    return agreed >= _MIN_POINTS


def _agree(one: Expression, other: Expression, point: _Point, digits: int) -> bool | None:
    """Whether two expressions have the same value at a point; None if one has none there."""
    with mp.workdps(digits):
        try:
            value, wanted = point.value(one), point.value(other)
        except (_Undefined, ArithmeticError, ValueError, TypeError):
            return None
        if not (mp.isfinite(value) and mp.isfinite(wanted)):
            return None
        small = mpf(10) ** (_GUARD_DIGITS - digits)
        if abs(value - wanted) <= small * max(abs(value), abs(wanted)):
            return True
        if point.negative and (_is_complex(value, small) or _is_complex(wanted, small)):
            return None  # another branch of a root or logarithm
        return False


def _is_complex(value: mpc, small: mpf) -> bool:
    return bool(abs(mp.im(value)) > small * abs(value))


def _proportional(one: Expression, other: Expression, op: str, log_base: int) -> bool:
    """Whether two expressions differ by a constant factor; for an inequality it has to be positive."""
    ratio: mpc | None = None
    agreed = 0
    for index in range(_POINTS):
        point = _Point(index, log_base)
        with mp.workdps(_DIGITS[0]):
            try:
                value, wanted = point.value(one), point.value(other)
            except (_Undefined, ArithmeticError, ValueError, TypeError):
                continue
            if not value or not wanted or not (mp.isfinite(value) and mp.isfinite(wanted)):
                if bool(value) is not bool(wanted):
                    return False
                continue
            ratio = value / wanted if ratio is None else ratio
            small = mpf(10) ** (_GUARD_DIGITS - _DIGITS[0])
            if abs(value - ratio * wanted) > small * abs(value) or (op != "=" and mp.re(ratio) < 0):
                return False
            agreed += 1
    return agreed >= _MIN_POINTS


class _Point:
    """One fixed value for each symbol, and the values of expressions there."""

    def __init__(self, index: int, log_base: int) -> None:
        self._index = index
        self._log_base = log_base
        self.negative = index >= _MIN_POINTS
        """Whether symbols may have negative values here."""

    def value(self, node: Expression) -> mpc:
        match node.op:
            case "number":
                return mpf(node.value.numerator) / node.value.denominator
            case "symbol":
                return self._symbol(node.name)
            case "apply":
                hashed = zlib.crc32(node.name.encode())
                argument = self.value(node.parts[0])
                return mp.sin(argument * (1 + hashed % 89) / 37 + hashed % 101) + argument / 7
            case "degree":
                return self.value(node.parts[0]) * mp.pi / 180
            case "log":
                return self._log(node)
        return self._applied(node.op, [self.value(part) for part in node.parts])

    def _symbol(self, name: str) -> mpc:
        if name in ("pi", "e", "i"):
            return {"pi": mp.pi, "e": mp.e, "i": mpc(0, 1)}[name] * 1
        hashed = zlib.crc32(f"{name}/{self._index}".encode())
        value = mpf(hashed % 99_991 + 20_000) / 47_777
        return -value if self.negative and (hashed >> 17) % 2 else value

    def _log(self, node: Expression) -> mpc:
        value = _logarithm(self.value(node.parts[0]))
        if len(node.parts) == 2:
            return value / _logarithm(self.value(node.parts[1]))
        return value / mp.log(self._log_base) if self._log_base else value

    def _applied(self, op: str, parts: list[mpc]) -> mpc:
        if operation := _OPERATIONS.get((op, len(parts))):
            return operation(*parts)
        if op not in _FUNCTIONS or len(parts) != 1 or abs(parts[0]) > mpf(2) ** 1000:
            raise _Undefined
        return _FUNCTIONS[op](parts[0])


def _sum(one: mpc, other: mpc) -> mpc:
    """A sum; 0 where all digits cancel."""
    total = one + other
    rounding = mpf(10) ** (_GUARD_DIGITS - mp.dps)
    return total if abs(total) > rounding * max(abs(one), abs(other)) else mpf(0)


def _logarithm(value: mpc) -> mpc:
    if not value:
        raise _Undefined
    return mp.log(value)


def _power(base: mpc, exponent: mpc) -> mpc:
    if not base:
        if mp.re(exponent) <= 0:
            raise _Undefined
        return mpf(0)
    if abs(exponent) * (abs(mp.log(abs(base), 2)) + 5) > MAX_LOG2:
        raise _Undefined
    return mp.power(base, exponent)


def _root(radicand: mpc, degree: mpc) -> mpc:
    """The real root where there is one: that of -8 of degree 3 is -2."""
    odd = mp.isint(degree) and int(mp.re(degree)) % 2 == 1 if abs(degree) < MAX_LOG2 else False
    if odd and not mp.im(radicand) and mp.re(radicand) < 0:
        return -_power(-radicand, 1 / degree)
    return _power(radicand, 1 / degree)


def _factorial(value: mpc) -> mpc:
    if abs(value) > MAX_LOG2 / 20:
        raise _Undefined
    return mp.factorial(value)


_OPERATIONS: dict[tuple[str, int], Callable[..., mpc]] = {
    ("+", 2): _sum,
    ("*", 2): operator.mul,
    ("/", 2): operator.truediv,
    ("-", 1): operator.neg,
    ("^", 2): _power,
    ("root", 1): mp.sqrt,
    ("root", 2): _root,
    ("!", 1): _factorial,
    ("binom", 2): lambda above, below: _factorial(above) / _factorial(below) / _factorial(above - below),
    ("ln", 1): _logarithm,
    ("lg", 1): lambda value: _logarithm(value) / mp.log(10),
    ("exp", 1): lambda value: _power(mp.e * 1, value),
}
