r"""Reads one answer into one typed value, wholly or not at all: a number, expression, time, or words; with units."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from cepo.answers.notation import loosened, plain, respelt
from cepo.answers.reading.expressions import expression
from cepo.answers.reading.lists import words
from cepo.answers.reading.nodes import Expression
from cepo.answers.reading.numerals import PARTS, SCALES, Numeral, as_number, in_base, numeral, ordinal, words_number
from cepo.answers.reading.operators import operator
from cepo.answers.reading.relations import relation
from cepo.answers.reading.times import Clock, Date, moment
from cepo.answers.reading.tokens import CONSTANTS
from cepo.answers.reading.units import CURRENCIES, MAX_UNIT_CHARACTERS, Unit, conflict, priced, unit_of

_CURRENCY = re.compile(rf"([-+]?) *(US\$|[{CURRENCIES}]|Rs\.?|USD|EUR|GBP|INR) *(?=[-+]?[\d.\\])")
_LABEL = re.compile(r"([A-Za-z][A-Za-z .]{0,30}?)[ :#]+(?=[-+]?\d)")
_LABELS = frozenset(
    words(
        "day no number page case figure team room step year level stage grade chapter problem question "
        "exercise item row column position place player door box bus route house seat table group class part "
        "round game week floor line term section lesson option card lane track unit node"
    )
)
"""Nouns that only name what a number counts: `Day 12` is 12."""
_TWICE = re.compile(r"([A-Za-z -]+?) *\(([-\d., /]+)\)")
_IN_WORDS = re.compile(r" *\(([a-zA-Z -]+)\)")
_HALF = " and a half"
_SIGN_WORD = re.compile(r"(minus|negative|plus|positive) +(?=[\d.\\$])", re.IGNORECASE)
_NARROW = frozenset("mgsL")
"""Units of one letter that count without `\\text{}` right behind a number: `5m`, but not `5n`."""
_SPACED = frozenset("mgsLlhJNWVAKCFT")
"""Units of one letter that count without `\\text{}` after a number and a blank: `5 N`."""
_BARE_LETTERS = re.compile(r"[A-Za-z]{2,}")
_RUNS = ("abcd", "ijk", "klmn", "pqrs", "rst", "uvw", "wxyz")
_GLUED_PRODUCT = re.compile(r"[A-Za-z]{2,4}")  # `3xyz` is a product, `3apples` has a unit
_PRODUCT = re.compile(r"[B-DF-HJ-NP-TV-Zb-df-hj-np-tv-z]{2,4}")  # after a blank: `3 xyz`


@dataclass(frozen=True)
class Quantity:
    """A plain number with its unit."""

    value: Fraction
    unit: str = ""
    """The canonical name of a known unit, the words of any other, empty without a unit."""
    percent: bool = False
    measure: Unit | None = None
    decimals: int = -1
    """How many decimals it is written with; -1 for an exact form."""


@dataclass(frozen=True)
class Value:
    """What an answer is read as."""

    spelling: str
    """The answer in one spelling; equal spellings are equal answers."""
    quantity: Quantity | None = None
    node: Expression | None = None
    """The expression, equation or inequality, without its unit."""
    unit: Unit | None = None
    """The unit of the expression."""
    moment: Clock | Date | None = None
    base: tuple[str, int] | None = None
    """The digits of a number with a base, and the base."""
    product: Expression | None = None
    """The same letters as a product: `\\frac12 mg` may be half a milligram or half of m times g."""
    label: str = ""
    """A noun before a number: `case` in `Case 1`."""
    is_word: bool = False
    """Whether it is words alone."""
    operator: str = ""
    r"""The first operator that only algebra evaluates (`\int`, `\sum`, `\pm`), if all other parts are known to it."""

    @property
    def is_read(self) -> bool:
        """Whether it is one value or words, and has no structure that is left to read."""
        return bool(self.quantity or self.node or self.moment or self.base or self.is_word or self.operator)

    @property
    def expression(self) -> Expression | None:
        """The number or expression, without its unit; None if it is neither."""
        return Expression("number", value=self.quantity.value) if self.quantity else self.node


def quantity(answer: str) -> Quantity | None:
    """The quantity that an answer states; None for anything other than a number with an optional unit.

    Example:
        quantity("1.5 thousand km").value  # Fraction(1500)
    """
    return read(answer).quantity


def units_conflict(one: Quantity, other: Quantity) -> bool:
    """Whether both have a unit and the units contradict each other. Units are never converted."""
    return one.measure is not None and other.measure is not None and conflict(one.measure, other.measure)


@lru_cache(maxsize=8192)
def read(answer: str, decimal_comma: bool = False) -> Value:
    r"""The value that an answer states.

    Example:
        read("2\\sqrt{5}\\text{ cm}").unit.name  # "cm"

    Args:
        decimal_comma: whether `1,5` is one and a half.
    """
    text = plain(answer)
    if decimal_comma:
        text = _with_points(text)
    flat = re.sub(r"\s+", " ", respelt(text)).strip()
    spelling = loosened(respelt(text)) if not decimal_comma else loosened(flat)
    if when := moment(flat.replace("~", " ")):
        return Value(spelling, moment=when)
    if based := in_base(text):
        return Value(spelling, base=based)
    if flat.casefold() in CONSTANTS:
        return Value(spelling, node=expression(flat.casefold()))
    if _is_word(flat):
        counted = _spelt_out(flat)
        if counted:
            return Value(spelling, counted, unit=counted.measure)
        return Value(spelling, is_word=True, product=expression(flat))
    if twice := _TWICE.fullmatch(flat):
        value = words_number(twice[1])
        flat = twice[2] if value is not None and value == as_number(twice[2]) else flat
    label, flat = _labelled(flat)
    if counted := _counted(flat):
        product = expression(text) if counted.measure and "\\text" not in text else None
        return Value(spelling, counted, unit=counted.measure, product=product, label=label)
    node, unit = _measured(text)
    node = node or relation(text)
    return Value(spelling, node=node, unit=unit, operator="" if node else operator(text))


def _with_points(text: str) -> str:
    """A text whose commas separate decimals, with points instead: `1.234,5` becomes `1234.5`."""
    if re.search(r"\d,\d", text) or re.search(r"(?<![\d.])\d{1,3}(?:\.\d{3})+(?![\d.])", text):
        text = re.sub(r"(?<=\d)\.(?=\d{3})", "", text)
    return re.sub(r"(?<=\d),(?=\d)", ".", text)


def _spelt_out(flat: str) -> Quantity | None:
    """A number in words, with a unit in small letters: `seven apples`."""
    parts = flat.split(" ")
    for size in range(len(parts), 0, -1):
        value = words_number(" ".join(parts[:size]))
        unit = " ".join(parts[size:])
        if value is not None:
            measure = unit_of(unit) if unit.islower() else None
            return Quantity(value, measure.name if measure else "", measure=measure) if measure or not unit else None
    return None


def _is_word(flat: str) -> bool:
    """Whether a text is one word or several, and no product of variables such as `xyz`."""
    letters = flat.replace(" ", "").replace("-", "")
    if not letters.isalpha() or len(letters) < 2:
        return False
    if " " in flat and all(len(part) == 1 for part in flat.split(" ")):
        return False  # x y
    if any(set(letters) <= set(run) for run in _RUNS):
        return False
    tree = expression(flat)
    return tree is None or (tree.op in ("*", "symbol") and _BARE_LETTERS.fullmatch(flat) is not None)


def _labelled(flat: str) -> tuple[str, str]:
    """Splits `Case 1` into its label and its number; the label is empty for other texts."""
    if (noun := _LABEL.match(flat)) and (label := noun[1].casefold().strip(" .")) in _LABELS:
        return label, flat[noun.end() :]
    return "", flat


def _counted(flat: str) -> Quantity | None:
    """A plain number, with the unit before or after it."""
    flat = _SIGN_WORD.sub(lambda sign: "-" if sign[1].casefold() in ("minus", "negative") else "", flat, count=1)
    if (order := ordinal(flat)) is not None:
        return Quantity(order)
    if flat.startswith("(") and flat.endswith(")") and "(" not in flat[1:]:
        flat = flat[1:-1].strip()
    money: Unit | None = None
    if sign := _CURRENCY.match(flat):
        money = unit_of(sign[2].replace("US$", "$"))
        flat = sign[1] + flat[sign.end() :]
    number = numeral(flat)
    if number is None:
        return None
    rest = flat[number.end :]
    value, rest = _scaled(number.value, rest)
    if number.decimals < 0 and rest.startswith(_HALF):
        value, rest = value + Fraction(1, 2), rest.removeprefix(_HALF)
    if (twice := _IN_WORDS.fullmatch(rest)) and words_number(twice[1]) == value:
        rest = ""
    if money is not None:
        rest = rest.strip()
        unit = money if not rest or unit_of(rest) == money else priced(money, rest)
        return Quantity(value, money.name, False, unit, number.decimals) if unit else None
    return _with_unit(value, number, rest)


def _scaled(value: Fraction, rest: str) -> tuple[Fraction, str]:
    """A number times the words behind it, and what is left: `1.5 million`, `7 dozen`, `3 quarters`."""
    first, _, others = rest.strip().partition(" ")
    if first.casefold() in SCALES:
        return _scaled(value * 10 ** SCALES[first.casefold()], others and f" {others}")
    if first.casefold() in ("dozen", "dozens"):
        return _scaled(value * 12, others and f" {others}")
    if (part := PARTS.get(first.casefold()) or PARTS.get(first.casefold().removesuffix("s"))) and first != "half":
        return value / part, others and f" {others}"
    return value, rest


def _with_unit(value: Fraction, number: Numeral, rest: str) -> Quantity | None:
    if not rest.strip():
        return Quantity(value, decimals=number.decimals)
    name = rest.strip()
    if (
        len(name) == 1
        and name.isascii()
        and name.isalpha()
        and name not in (_SPACED if rest.startswith(" ") else _NARROW)
    ):
        return None
    measure = unit_of(name)
    if measure and not measure.known and (_PRODUCT if rest.startswith(" ") else _GLUED_PRODUCT).fullmatch(name):
        return None
    if measure:
        percent = measure.name == "%"
        unit = "" if percent else " ".join((measure.name, *measure.words)) if measure.known else measure.name
        return Quantity(value, unit, percent, measure, number.decimals)
    return _compound(value, rest)


def _compound(value: Fraction, rest: str) -> Quantity | None:
    """A sum of known units of one dimension, the larger first: `2 hours 30 minutes`."""
    total, names, last = Fraction(0), [], None
    while True:
        parts = re.match(r" *([^\d]+?)(?:,? +and +|,? *)(?=\d|$)", rest)
        measure = unit_of(parts[1]) if parts else None
        if parts is None or measure is None or measure.factor is None or value < 0:
            return None
        if last is not None and (last.dimension != measure.dimension or (last.factor or 0) <= measure.factor):
            return None
        total, last = total + value * measure.factor, measure
        names.append(measure.name)
        rest = rest[parts.end() :]
        if not rest:
            break
        number = numeral(rest)
        if number is None:
            return None
        value, rest = number.value, rest[number.end :]
    if len(names) < 2:
        return None
    name = " ".join(names)
    return Quantity(total, name, False, Unit(name, Fraction(1), last.dimension))


def _measured(text: str) -> tuple[Expression | None, Unit | None]:
    """An expression and its unit: that in `\\text{...}` or a sign at its end, or a known unit in plain letters."""
    if money := _CURRENCY.match(text):
        node = expression(money[1] + text[money.end() :])
        return node, unit_of(money[2]) if node else None
    if "\\text" not in text and (node := expression(text)):
        if node.op == "degree":
            return node.parts[0], unit_of("\u00b0")
        return node, None
    start = text.find("\\text")
    if start > 0:
        head = text[:start].rstrip()
        if head.endswith("\\frac{"):
            head, start = head[:-6], start - 6
        if head.endswith("\\mu"):
            head, start = head[:-3], start - 3 - (len(text[:start]) - len(text[:start].rstrip()))
        unit = unit_of(text[start:])
        return (expression(head), unit) if unit else (None, None)
    return _split_plain(text)


def _split_plain(text: str) -> tuple[Expression | None, Unit | None]:
    start = max(0, len(text) - MAX_UNIT_CHARACTERS)
    for boundary in re.compile(r"[ \d)}](?=[a-zA-Z%\u00b0])").finditer(text, start):
        tail = text[boundary.end() :]
        unit = unit_of(tail) if len(tail.strip()) > 1 or tail in "%\u00b0" else None
        if unit and unit.known and not unit.words and (node := expression(text[: boundary.end()].strip())):
            return node, unit
    return None, None
