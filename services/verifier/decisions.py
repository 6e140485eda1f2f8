"""Decides whether two answers are equal where strings and plain numbers are enough, without algebra."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from cepo.answers.choices import chosen, labelled_option
from cepo.answers.kinds import DIGITS, Kind, truth, words
from cepo.answers.notation import as_number, is_words, normalise
from cepo.answers.quantities import quantity, units_conflict
from services.verifier.forms import same_form

MIN_DIFFERENCE = Fraction(1, 100_000)
"""Plain numbers that differ by more are different. math-verify compares six decimals, so it decides closer ones."""

MIN_RATIO = Fraction(1, 10_000)
"""Plain numbers that differ by a larger share of the reference are different, however small they are."""
_IN_BASE = re.compile(r"(-?[\dA-Fa-f]+)_\{?(\d+)\}?")


def decide(kind: Kind, answer: str, reference: str) -> bool | None:
    """Whether two answers are equal; None if only algebra can tell."""
    if rule := _WORDED.get(kind.name):
        return rule(kind, answer, reference)
    return same_form(answer, reference, kind, decide_element)


def decide_element(answer: str, reference: str, kind: Kind) -> bool | None:
    """Whether one element of a list, tuple, set or matrix equals another; None if only algebra can tell.

    The elements are compared as kind math or number, by the form of the reference, with the options of the kind.
    """
    rule = _number if quantity(reference) else _math
    return rule(kind, answer, reference)


def _math(kind: Kind, answer: str, reference: str) -> bool | None:
    given, wanted = normalise(answer), normalise(reference)
    if given == wanted:
        return True
    number, wanted_number = as_number(given), as_number(wanted)
    if number is not None and wanted_number is not None:
        return None if _near(kind, number, wanted_number) else False
    bases = _IN_BASE.fullmatch(given), _IN_BASE.fullmatch(wanted)
    if bases[0] and bases[1]:
        return bases[0].groups() == bases[1].groups()
    if (is_words(given) or number is not None) and (is_words(wanted) or wanted_number is not None):
        return False  # two texts are not compared as products of their letters
    return None


def _near(kind: Kind, number: Fraction, wanted: Fraction) -> bool:
    """Whether two plain numbers agree within the digits of the kind."""
    if kind.digits < DIGITS:
        return abs(number - wanted) <= Fraction(1, 10**kind.digits)
    return abs(number - wanted) <= min(MIN_DIFFERENCE, abs(wanted) * MIN_RATIO or 1)


def _number(kind: Kind, answer: str, reference: str) -> bool | None:
    given, wanted = quantity(answer), quantity(reference)
    if given is None or wanted is None:
        return _math(kind, answer, reference)
    if units_conflict(given, wanted):
        return False
    pairs = [(a, b) for a in given.readings for b in wanted.readings]
    if given.percent and wanted.percent:
        pairs = [(given.value, wanted.value)]
    if kind.tolerance:
        return any(abs(a - b) <= kind.margin(b) for a, b in pairs)
    close = [(a, b) for a, b in pairs if _near(kind, a, b)]
    if any(round(a, kind.digits) == round(b, kind.digits) for a, b in close):
        return True
    return None if close and not (given.unit or wanted.unit) else False


def _text(kind: Kind, answer: str, reference: str) -> bool:
    one, other = words(answer, kind), words(reference, kind)
    return one == other if other else normalise(answer) == normalise(reference)


def _yesno(_: Kind, answer: str, reference: str) -> bool:
    return truth(answer) is truth(reference)


def _choice(_: Kind, answer: str, reference: str) -> bool:
    listed = labelled_option(reference)
    return chosen(answer, listed) == chosen(reference, {})


_WORDED: dict[str, Callable[[Kind, str, str], bool | None]] = {
    "text": _text,
    "yesno": _yesno,
    "choice": _choice,
}
