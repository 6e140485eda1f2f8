"""Exact values of expression trees, as far as fractions of a bounded size reach, and what is left to evaluate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from cepo.answers.reading.nodes import Expression

_ARITHMETIC = frozenset({"number", "+", "*", "/", "-", "^", "!", "binom"})
NAMED = frozenset({"pi", "e", "i"})
"""Symbols that are numbers."""


def rational(node: Expression, values: Mapping[str, Fraction], bits: int) -> Fraction | None:
    """The exact value of a tree; None if it is no fraction, or one whose parts have more bits.

    Example:
        rational(expression("1-2^{-3}"), {}, bits=64)  # Fraction(7, 8)

    Args:
        values: those of the symbols.
    """
    if node.op == "number":
        return node.value
    if node.op == "symbol":
        return values.get(node.name)
    parts: list[Fraction] = []
    for part in node.parts:
        value = rational(part, values, bits)
        if value is None:
            return None
        parts.append(value)
    result = _applied(node.op, parts, bits)
    if result is None or result.numerator.bit_length() > bits or result.denominator.bit_length() > bits:
        return None
    return result


def symbols(node: Expression) -> frozenset[str]:
    """The names of the variables of a tree; unknown functions are among them."""
    if node.op == "symbol":
        return frozenset() if node.name in NAMED else frozenset({node.name})
    inner = frozenset[str]().union(*map(symbols, node.parts))
    return inner | {f"{node.name}()"} if node.op == "apply" else inner


def is_unevaluated(node: Expression) -> bool:
    r"""Whether a tree is arithmetic that still has to be done: `123*456`, `2+3`, `5!`.

    Numbers, fractions and powers of numbers, and an integer plus a proper fraction are exact forms.
    """
    return _is_arithmetic(node) and not _is_exact_form(node)


def _is_arithmetic(node: Expression) -> bool:
    return node.op in _ARITHMETIC and all(map(_is_arithmetic, node.parts))


def _is_exact_form(node: Expression) -> bool:
    if node.op == "-":
        return _is_exact_form(node.parts[0])
    if node.op == "/":
        return all(map(_is_power, node.parts))
    if node.op == "+":
        whole, part = node.parts
        return _is_number(whole) and part.op == "/" and all(map(_is_number, part.parts))
    return _is_power(node)


def _is_power(node: Expression) -> bool:
    if node.op == "-":
        return _is_power(node.parts[0])
    if node.op == "^":
        base, exponent = node.parts
        return _is_simple(base) and _is_simple(exponent)
    return _is_number(node)


def _is_simple(node: Expression) -> bool:
    """Whether a tree is a number or a fraction of two."""
    if node.op == "-":
        return _is_simple(node.parts[0])
    return _is_number(node) or (node.op == "/" and all(map(_is_number, node.parts)))


def _is_number(node: Expression) -> bool:
    return node.op == "number" or (node.op == "-" and node.parts[0].op == "number")


def _applied(op: str, parts: list[Fraction], bits: int) -> Fraction | None:
    match op, parts:
        case "+", [one, other]:
            return one + other
        case "*", [one, other]:
            return one * other
        case "/", [one, other]:
            return one / other if other else None
        case "-", [one]:
            return -one
        case "^", [base, exponent]:
            return _power(base, exponent, bits)
        case "!", [one]:
            return Fraction(math.factorial(int(one))) if _is_count(one, bits) else None
        case "binom", [above, below]:
            fits = _is_count(above, bits) and _is_count(below, bits)
            return Fraction(math.comb(int(above), int(below))) if fits else None
        case "abs", [one]:
            return abs(one)
        case "floor", [one]:
            return Fraction(math.floor(one))
        case "ceil", [one]:
            return Fraction(math.ceil(one))
    return None


def _power(base: Fraction, exponent: Fraction, bits: int) -> Fraction | None:
    if exponent.denominator != 1 or (base == 0 and exponent <= 0):
        return None
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    return base**exponent.numerator if size * abs(exponent.numerator) <= bits or abs(base) in (0, 1) else None


def _is_count(value: Fraction, bits: int) -> bool:
    """Whether the factorial of a value is defined and has at most this number of bits."""
    n = value.numerator
    return value.denominator == 1 and 0 <= n <= bits and n * max(1, n.bit_length()) <= bits
