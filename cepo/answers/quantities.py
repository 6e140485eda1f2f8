"""Reads numbers as answers write them: with signs, separators, fractions, powers of ten, percentages and units."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from cepo.answers.notation import as_number, respelt

MAX_EXPONENT = 300
"""Numbers with a larger power of ten are left to the algebra, which may run out of time."""
_UNITS = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
    "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile", "mg": "milligram", "g": "gram",
    "kg": "kilogram", "lb": "pound", "oz": "ounce", "ml": "milliliter millilitre", "l": "liter litre",
    "s": "second sec", "min": "minute", "h": "hour hr", "day": "", "week": "", "month": "", "year": "",
    "cent": "", "dollar": "usd",
    "euro": "eur", "km/h": "kmh kph", "m/s": "", "mph": "", "j": "joule", "w": "watt", "v": "volt", "n": "newton",
    "hz": "hertz",
}  # fmt: skip
_CANONICAL = {spelling: unit for unit, others in _UNITS.items() for spelling in (unit, *others.split())}
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NO_UNITS = frozenset({"pi", "sin", "cos", "tan", "log", "exp", "inf", "infinity", "mod", "and", "not"})
_NUMBER = re.compile(r"[-+]? *(?:\d[\d,]*\.?\d*|\.\d+)")
_POWER = re.compile(
    r" *(?:[eE]([-+]?\d{1,4})|(?:\\times|\\cdot|\*|x|\u00d7) *10 *(?:\^|\*\*) *\{? *([-+]?\d{1,4}) *\}?)"
)
_MIXED = re.compile(r"([-+]?) *(\d+) *(?:\\frac *\{ *(\d+) *\} *\{ *(\d+) *\}| +(\d+) */ *(\d+))")
_RATIO = re.compile(r"[-+]? *(?:\d+ */ *\d+|\\frac *\{ *[-+]?\d+ *\} *\{ *\d+ *\})")
_UNIT = re.compile(r"([^\W\d_]+(?:[ /.-]+[^\W\d_]+)*) *(?:(?:\^|\*\*) *\{? *([23]) *\}?|([\u00b2\u00b3]))?")


@dataclass(frozen=True)
class Quantity:
    """A number with its unit or percent sign."""

    value: Fraction
    unit: str = ""
    """The canonical name of a known unit, the word itself of any other, empty without a unit."""
    percent: bool = False

    @property
    def readings(self) -> tuple[Fraction, ...]:
        """The values that it may stand for: `50%` is 50 and 1/2, as in the paper's grader."""
        return (self.value, self.value / 100) if self.percent else (self.value,)


def quantity(answer: str) -> Quantity | None:
    """The quantity that an answer states; None for anything other than a number with an optional unit.

    Example:
        quantity("1.5 thousand km")  # Quantity(Fraction(1500), "km")
    """
    text = re.sub(r"\s+", " ", respelt(answer)).strip()
    for reader in (_mixed, _decimal, _ratio):
        if found := reader(text):
            value, rest = found
            return _with_unit(value, rest.strip())
    return None


def units_conflict(one: Quantity, other: Quantity) -> bool:
    """Whether both units are known and differ. Units are never converted."""
    known = {re.sub(r"\^[23]$", "", unit) in _UNITS for unit in (one.unit, other.unit)}
    return known == {True} and one.unit != other.unit


def _mixed(text: str) -> tuple[Fraction, str] | None:
    found = _MIXED.match(text)
    if not found:
        return None
    whole, above, below = (int(part) for part in found.groups()[1:] if part is not None)
    if not 0 < above < below:
        return None  # 2\frac{3}{2} is a product
    value = whole + Fraction(above, below)
    return (-value if found[1] == "-" else value), text[found.end() :]


def _decimal(text: str) -> tuple[Fraction, str] | None:
    found = _NUMBER.match(text)
    value = as_number(found[0].strip()) if found else None
    if found is None or value is None or _RATIO.match(text):
        return None
    rest = text[found.end() :]
    if power := _POWER.match(rest):
        exponent = int(power[1] or power[2])
        if abs(exponent) > MAX_EXPONENT:
            return None
        value, rest = value * Fraction(10) ** exponent, rest[power.end() :]
    return value, rest


def _ratio(text: str) -> tuple[Fraction, str] | None:
    found = _RATIO.match(text)
    value = as_number(found[0].strip()) if found else None
    return (value, text[found.end() :]) if found is not None and value is not None else None


def _with_unit(value: Fraction, rest: str) -> Quantity | None:
    if rest in ("", "%") or rest.casefold() in ("percent", "per cent"):
        return Quantity(value, percent=bool(rest))
    first, _, others = rest.partition(" ")
    if first.casefold() in _SCALES:
        return _with_unit(value * 10 ** _SCALES[first.casefold()], others.strip())
    found = _UNIT.fullmatch(rest)
    if not found:
        return None
    name, power = _unit_name(found[1].casefold())
    power = found[2] or {"\u00b2": "2", "\u00b3": "3"}.get(found[3] or "", power)
    if not (name in _UNITS or _is_noun(name)):
        return None
    return Quantity(value, f"{name}^{power}" if power else name)


def _unit_name(name: str) -> tuple[str, str]:
    power = ""
    for word, exponent in (("square ", "2"), ("sq ", "2"), ("cubic ", "3")):
        if name.startswith(word):
            name, power = name.removeprefix(word), exponent
    name = re.sub(r" ?/ ?", "/", name.replace(" per ", "/"))
    return _CANONICAL.get(name) or _CANONICAL.get(name.removesuffix("s"), name), power


def _is_noun(name: str) -> bool:
    """Whether a word counts things (`5 apples`) and does not multiply (`5 ab`, `5 pi`)."""
    words = re.split(r"[ /.-]+", name)
    return len(words[0]) > 2 and not _NO_UNITS.intersection(words)
