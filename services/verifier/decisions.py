"""What strings and plain numbers decide about two answers, without algebra."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from cepo.answers.choices import chosen, labelled_option
from cepo.answers.extract import as_number, is_words, normalise
from cepo.answers.kinds import DIGITS, Kind, truth, words
from cepo.answers.quantities import quantity, units_conflict

MIN_DIFFERENCE = Fraction(1, 100_000)
"""Plain numbers further apart are different; math-verify compares six decimals, so nearer ones are left to it."""

MIN_RATIO = Fraction(1, 10_000)
"""Plain numbers that differ by a larger share of the reference are different, however small both are."""
_IN_BASE = re.compile(r"(-?[\dA-Fa-f]+)_\{?(\d+)\}?")


def decide(kind: Kind, answer: str, reference: str) -> bool | None:
    """Whether two answers are equal; None where it takes algebra to tell."""
    return _RULES.get(kind.name, _form)(kind, answer, reference)


def _form(_: Kind, answer: str, reference: str) -> bool | None:
    return True if normalise(answer) == normalise(reference) else None


def _math(kind: Kind, answer: str, reference: str) -> bool | None:
    found, wanted = normalise(answer), normalise(reference)
    if found == wanted:
        return True
    number, wanted_number = as_number(found), as_number(wanted)
    if number is not None and wanted_number is not None:
        return None if _near(kind, number, wanted_number) else False
    bases = _IN_BASE.fullmatch(found), _IN_BASE.fullmatch(wanted)
    if bases[0] and bases[1]:
        return bases[0].groups() == bases[1].groups()
    if (is_words(found) or number is not None) and (is_words(wanted) or wanted_number is not None):
        return False  # two texts are not compared as products of their letters
    return None


def _near(kind: Kind, number: Fraction, wanted: Fraction) -> bool:
    """Whether plain numbers may be equal as far as the kind's digits tell."""
    if kind.digits < DIGITS:
        return abs(number - wanted) <= Fraction(1, 10**kind.digits)
    return abs(number - wanted) <= min(MIN_DIFFERENCE, abs(wanted) * MIN_RATIO or 1)


def _number(kind: Kind, answer: str, reference: str) -> bool | None:
    found, wanted = quantity(answer), quantity(reference)
    if found is None or wanted is None:
        return _math(kind, answer, reference)
    if units_conflict(found, wanted):
        return False
    pairs = [(a, b) for a in found.readings for b in wanted.readings]
    if found.percent and wanted.percent:
        pairs = [(found.value, wanted.value)]
    if kind.tolerance:
        return any(abs(a - b) <= kind.margin(b) for a, b in pairs)
    close = [(a, b) for a, b in pairs if _near(kind, a, b)]
    if any(round(a, kind.digits) == round(b, kind.digits) for a, b in close):
        return True
    return None if close and not (found.unit or wanted.unit) else False


def _text(_: Kind, answer: str, reference: str) -> bool:
    one, other = words(answer), words(reference)
    return one == other if other else normalise(answer) == normalise(reference)


def _yesno(_: Kind, answer: str, reference: str) -> bool:
    return truth(answer) is truth(reference)


def _choice(_: Kind, answer: str, reference: str) -> bool:
    listed = labelled_option(reference)
    return chosen(answer, listed) == chosen(reference, {})


_RULES: dict[str, Callable[[Kind, str, str], bool | None]] = {
    "math": _math,
    "number": _number,
    "text": _text,
    "yesno": _yesno,
    "choice": _choice,
}
