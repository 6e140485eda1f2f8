r"""Units of measurement: their spellings, dimensions and factors, and the words of other units.

A unit is read from the text after a number: `km/h`, `\text{m/s}^2`, `square metres`, `\mu\text{m}`, `kPa`, `apples`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, lru_cache

from cepo.answers.reading import chinese
from cepo.answers.reading.lists import words

_BASES = {
    # name: (dimension, factor, spellings)
    "m": ("length", "1", "meter metre"), "in": ("length", "0.0254", "inch inches"),
    "ft": ("length", "0.3048", "foot feet"), "yd": ("length", "0.9144", "yard yards"),
    "mi": ("length", "1609.344", "mile miles"), "au": ("length", "149597870700", "astronomical_unit"),
    "ly": ("length", "9460730472580800", "lightyear lightyears light-year light-years"),
    "angstrom": ("length", "1e-10", "angstroms \u00c5"),
    "g": ("mass", "0.001", "gram gramme gm"), "lb": ("mass", "0.45359237", "pound lbs"),
    "oz": ("mass", "0.028349523125", "ounce ozs"), "t": ("mass", "1000", "tonne tonnes"),
    "ton": ("mass", "907.18474", "tons"), "amu": ("mass", "1.66053906660e-27", "dalton Da"),
    "s": ("time", "1", "second sec secs"), "min": ("time", "60", "minute mins"), "h": ("time", "3600", "hour hr hrs"),
    "day": ("time", "86400", ""), "week": ("time", "604800", "wk wks"), "month": ("month", "1", "mo"),
    "year": ("month", "12", "yr yrs"), "decade": ("month", "120", ""), "century": ("month", "1200", "centuries"),
    "unit": ("unit", "1", ""), "ha": ("area", "10000", "hectare"), "acre": ("area", "4046.8564224", ""),
    "l": ("volume", "0.001", "L liter litre \\ell"), "gal": ("volume", "0.003785411784", "gallon gals"),
    "qt": ("volume", "0.000946352946", "quart"), "pt": ("volume", "0.000473176473", "pint"),
    "cup": ("volume", "0.0002365882365", ""), "cc": ("volume", "0.000001", ""),
    "tbsp": ("volume", "0.00001478676478125", "tablespoon"), "tsp": ("volume", "0.00000492892159375", "teaspoon"),
    "knot": ("speed", "0.514444444444", "kn"),
    "N": ("force", "1", "newton Newton"), "dyn": ("force", "0.00001", "dyne"),
    "Pa": ("pressure", "1", "pascal Pascal"), "bar": ("pressure", "100000", ""), "atm": ("pressure", "101325", ""),
    "mmHg": ("pressure", "133.322387415", ""), "torr": ("pressure", "133.322368421", "Torr"),
    "psi": ("pressure", "6894.757293168", ""),
    "J": ("energy", "1", "joule Joule"), "cal": ("energy", "4.184", "calorie"),
    "eV": ("energy", "1.602176634e-19", "electronvolt"), "Wh": ("energy", "3600", ""), "erg": ("energy", "1e-7", ""),
    "W": ("power", "1", "watt Watt"), "hp": ("power", "745.69987158227022", "horsepower"),
    "Hz": ("frequency", "1", "hertz Hertz"), "rpm": ("rotation", "1", ""),
    "V": ("voltage", "1", "volt Volt"), "A": ("current", "1", "ampere amp amps Ampere"),
    "C": ("charge", "1", "coulomb Coulomb"), "F": ("capacitance", "1", "farad"), "H": ("inductance", "1", "henry"),
    "ohm": ("resistance", "1", "\\Omega Ohm \u03a9"), "T": ("field", "1", "tesla Tesla"), "Wb": ("flux", "1", "weber"),
    "K": ("temperature", "1", "kelvin Kelvin kelvins"), "mol": ("amount", "1", "mole"),
    "M": ("molarity", "1", "molar"), "cd": ("luminosity", "1", "candela"), "lm": ("lumen", "1", "lumen"),
    "lx": ("lux", "1", "lux"), "Bq": ("activity", "1", "becquerel"), "dB": ("decibel", "1", "decibel"),
    "B": ("information", "8", "byte bytes"), "bit": ("information", "1", "bits"),
    "bps": ("bitrate", "1", ""), "pixel": ("pixel", "1", "px"),
    "\u00b0": ("angle", "1", "degree degrees deg degs"), "rad": ("radian", "1", "radian radians rads"),
    "\u00b0C": ("celsius", "1", "degrees_Celsius Celsius celsius centigrade"),
    "\u00b0F": ("fahrenheit", "1", "degrees_Fahrenheit Fahrenheit fahrenheit"),
    "arcmin": ("angle", "1/60", "arcminute arcminutes"), "arcsec": ("angle", "1/3600", "arcsecond arcseconds"),
    "%": ("percent", "1", "percent percents per_cent percentage"),
    "$": ("dollar", "1", "USD usd dollar dollars US$ bucks"), "cent": ("dollar", "0.01", "\u00a2 cents ct"),
    "\u20ac": ("euro", "1", "EUR eur euro euros"), "\u00a3": ("pound", "1", "GBP gbp"),
    "\u00a5": ("yen", "1", "JPY jpy yen"), "\u20b9": ("rupee", "1", "Rs Rs. INR rupee rupees rs rs."),
    "yuan": ("yuan", "1", "RMB CNY rmb renminbi"), "\u20a9": ("won", "1", "KRW won"), "\u20bd": ("rouble", "1", "RUB"),
    "CHF": ("franc", "1", "francs franc"),
}  # fmt: skip
_PREFIXED = words("m g s l N Pa J W V A C F H ohm T Hz mol M cal eV Wh B bit bps K Bq L Wb bar t cd lm")
_PREFIXES = {
    "T": (12, "tera"), "G": (9, "giga"), "M": (6, "mega"), "k": (3, "kilo"), "h": (2, "hecto"), "d": (-1, "deci"),
    "c": (-2, "centi"), "m": (-3, "milli"), "\\mu": (-6, "micro"), "u": (-6, "micro"), "n": (-9, "nano"),
    "p": (-12, "pico"), "f": (-15, "femto"),
}  # fmt: skip
_SPEED = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "kmph": "km/h"}
_SPEEDS = re.compile(rf"\b(?:{'|'.join(_SPEED)})\b")
_RATE = re.compile(r"/ *|(?:per|an?|each|every) +")
_SIGNS = frozenset({"%", "\u00b0", "$", "\u20ac", "\u00a3", "\u00a5"})
"""Units without powers."""
CURRENCIES = "$\u20ac\u00a3\u00a5\u20b9\u20a9\u20bd\u00a2"
"""Currency signs that stand before or after a number."""
MAX_UNIT_CHARACTERS = 80
"""A longer text is no unit."""
DEGREE = "\u00b0"
"""The unit of angles; its name in `Unit`."""
_NO_UNITS = frozenset(
    words(
        "pi sin cos tan log exp inf infinity mod and not or is no by to out of if for either neither nor "
        "but maybe perhaps possibly otherwise less more than greater fewer between least most plus minus "
        "divided over squared cubed power root square cubic hundred thousand million billion trillion "
        "dozen dozens tens ones hundreds thousands millions billions below above under after before half halves double "
        "triple score gross pairs_of negative positive equal equals unequal "
        "remainder wrong false incorrect never without except where when which that the base one two three "
        "four five six seven eight nine ten eleven twelve january february march april june july august "
        "september october november december jan feb mar apr jun jul aug sep sept oct nov dec am pm noon "
        "midnight choose factorial"
    )
) | frozenset(
    f"{part}{plural}"
    for part in words("third quarter fourth fifth sixth seventh eighth ninth tenth hundredth thousandth millionth")
    for plural in ("", "s")
)
"""Words that change the value before them, so they are no unit."""
_POWERS = {"square": 2, "sq": 2, "sq.": 2, "cubic": 3, "cu": 3}
_FRACTION = re.compile(r"\\frac *\{ *((?:[^{}]|\{[^{}]*\})*)\} *\{((?:[^{}]|\{[^{}]*\})*)\}")
_TOKEN = re.compile(
    r"\\text *\{((?:[^{}]|\{[^{}]*\})*)\}|(\\mu|\\Omega|\\ell)(?![a-zA-Z]) *|\^ *\{? *([-+]?\d) *\}?"
    r"|(\u00b0 *[CF]?(?![a-zA-Z])|[%$\u20ac\u00a3\u00a5\u20b9\u20a9\u20bd\u00a2])"
    r"|([^\W\d_][^\W\d_'.-]*(?:[.'-][^\W\d_]+)*\.?)|(/)|(\\cdot(?![a-zA-Z])|\*)|([()])|(\s+)"
)
_NOUN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|[^\W\d_]{3,}(?:-[^\W\d_]{2,})+|[^\W\d_]{2,}(?:-[^\W\d_]{3,})+")
"""A word, perhaps with hyphens: `two-way`; `x-y` and `ab-c` are differences."""


@dataclass(frozen=True)
class Unit:
    """A unit: known ones by their dimension and factor, words of other units by themselves."""

    name: str
    """Canonical: `km/h`, `m^2`, `$`, or the words in singular, `red ball`."""
    factor: Fraction | None = None
    """In base units of its dimension; None for words that are no known unit."""
    dimension: tuple[tuple[str, int], ...] = ()
    words: tuple[str, ...] = ()
    """What follows a known unit (`east` in `5 m east`), or the whole unknown unit."""

    @property
    def known(self) -> bool:
        """Whether the table has it."""
        return self.factor is not None


@lru_cache(maxsize=4096)
def unit_of(text: str) -> Unit | None:
    r"""The unit that a text is, wholly; None if it is none.

    Example:
        unit_of("\\text{ m/s}^2").name  # "m/s^2"
    """
    flat = _flattened(_FRACTION.sub(r"\1/\2", text.strip())) if len(text) <= MAX_UNIT_CHARACTERS else None
    if flat is None:
        return None
    if known := _known(flat):
        return known
    words = [word for word in flat.replace("(", " ").replace(")", " ").split() if word]
    for size in range(len(words) - 1, 0, -1):
        if (known := _known(" ".join(words[:size]))) and (tail := _nouns(words[size:])):
            return Unit(known.name, known.factor, known.dimension, tail)
    nouns = _nouns(words)
    return Unit(" ".join(words).casefold(), words=nouns) if nouns else None


def priced(money: Unit, rest: str) -> Unit | None:
    """A currency with what it pays for: `per day`, `/kg`, `profit`; None if the text says more."""
    rate = _RATE.match(rest)
    unit = unit_of(rest[rate.end() :] if rate else rest)
    if unit is None or (unit.known and not rate):
        return None
    return replace(money, words=unit.words or (unit.name,))


def conflict(one: Unit, other: Unit) -> bool:
    """Whether two units contradict each other: different known units, or words that do not include one another."""
    if one.known and other.known:
        return one.name != other.name or _disagree(one.words, other.words)
    return one.known or other.known or _disagree(one.words, other.words)


def _disagree(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return bool(one and other) and not (set(one) <= set(other) or set(other) <= set(one))


@cache
def _table() -> dict[str, tuple[str, str, Fraction]]:
    """Spellings to canonical name, dimension and factor."""
    spellings: dict[str, tuple[str, str, Fraction]] = {}
    for name, (dimension, factor, others) in _BASES.items():
        value = Fraction(factor)
        for spelling in (name, *others.split()):
            spelling = spelling.replace("_", " ")
            spellings[spelling] = (name, dimension, value)
            if len(spelling) > 2 and spelling.isalpha():
                spellings.setdefault(f"{spelling}s", (name, dimension, value))
        if name in _PREFIXED:
            for prefix, (power, word) in _PREFIXES.items():
                scaled = (f"{'u' if word == 'micro' else prefix}{name}", dimension, value * Fraction(10) ** power)
                for spelling in (name, *others.split()):
                    start = word if len(spelling) > 2 and spelling.islower() else prefix
                    for form in (
                        f"{start}{spelling}",
                        f"{start}{spelling}s" if start == word else f"{start}{spelling}",
                    ):
                        spellings.setdefault(form, scaled)
    return spellings


def _flattened(text: str) -> str | None:
    r"""A unit as plain words: `\text{m/s}^2` becomes `m/s ^2`; None if it has other LaTeX or digits."""
    pieces: list[str] = []
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            return None
        position = token.end()
        inner, micro, power, sign, word, slash, dot, bracket = token.groups()[:8]
        if inner is not None:
            flat = _flattened(inner) if inner.strip() else ""
            if flat is None:
                return None
            glued = pieces and pieces[-1] == "\\mu"
            pieces.append(flat if glued else f" {flat} ")
        elif micro:
            pieces.append(micro)
        elif power:
            pieces.append(f"^{int(power)} ")
        elif sign:
            pieces.append(f" {sign.replace(' ', '')} ")
        else:
            pieces.append(word or slash or (dot and " ") or bracket or " ")
    flat = re.sub(r"\s+", " ", "".join(pieces)).strip()
    return re.sub(r" (?=\^)|(?<=/) | (?=/)", "", flat) if flat else None


@lru_cache(maxsize=4096)
def _known(flat: str) -> Unit | None:
    """A unit whose every part the table has."""
    text = re.sub(r"\bper (?!cent)", "/", _SPEEDS.sub(lambda speed: _SPEED[speed[0]], chinese.in_symbols(flat)))
    text = re.sub(r" ?/ ?", "/", text)
    above, *below = text.split("/")
    powers: dict[str, int] = {}
    dimension: dict[str, int] = {}
    factor = Fraction(1)
    for sign, part in ((1, above), *((-1, part) for part in below)):
        atoms = _atoms(part.strip().strip("()").strip())
        if atoms is None:
            return None
        for (name, kind, value), power in atoms:
            powers[name] = powers.get(name, 0) + sign * power
            for base, exponent in _DERIVED.get(kind, {kind: 1}).items():
                dimension[base] = dimension.get(base, 0) + sign * power * exponent
            factor *= value ** (sign * power)
    if any(abs(powers.get(sign, 1)) != 1 for sign in _SIGNS):
        return None
    above_names = [_raised(unit, power) for unit, power in sorted(powers.items()) if power > 0]
    name = " ".join(above_names) or "1"
    name += "".join(f"/{_raised(unit, -power)}" for unit, power in sorted(powers.items()) if power < 0)
    return Unit(name, factor, tuple(sorted((base, power) for base, power in dimension.items() if power)))


def _raised(unit: str, power: int) -> str:
    return unit if power == 1 else f"{unit}^{power}"


_DERIVED = {
    "area": {"length": 2}, "volume": {"length": 3}, "speed": {"length": 1, "time": -1},
    "force": {"mass": 1, "length": 1, "time": -2}, "energy": {"mass": 1, "length": 2, "time": -2},
    "pressure": {"mass": 1, "length": -1, "time": -2}, "power": {"mass": 1, "length": 2, "time": -3},
}  # fmt: skip


def _atoms(part: str) -> list[tuple[tuple[str, str, Fraction], int]] | None:
    table = _table()
    if part in table:
        return [(table[part], 1)]
    atoms: list[tuple[tuple[str, str, Fraction], int]] = []
    power = 0
    for word in part.split(" ") if part else ():
        if word in ("squared", "cubed") and atoms and not power:
            atoms[-1] = (atoms[-1][0], 2 if word == "squared" else 3)
        elif word in _POWERS and not power:
            power = _POWERS[word]
        else:
            name, _, exponent = word.partition("^")
            entry = table.get(name) or table.get(name.removesuffix(".")) or _capitalised(table, name)
            if entry is None:
                return None
            atoms.append((entry, power or int(exponent or 1)))
            power = 0
    return atoms if atoms and not power else None


def _capitalised(table: dict[str, tuple[str, str, Fraction]], name: str) -> tuple[str, str, Fraction] | None:
    """A unit's word in capitals (`Meters`, `KM`); a symbol of one letter keeps its case."""
    return table.get(name.casefold()) if len(name) > 1 and (len(name) > 3 or name.isupper()) else None


def _nouns(words: list[str]) -> tuple[str, ...]:
    """The words of an unknown unit in singular, in order; empty if one changes the value or the first is too short."""
    lower = [word.casefold().strip(".,") for word in words]
    lower = [word for word in lower if word not in ("of", "the", "a")]
    if len(lower) == 1 and chinese.is_noun(lower[0]):
        return tuple(lower)
    if not lower or len(lower[0]) < 3 or any(not _NOUN.fullmatch(word) for word in lower):
        return ()
    if lower[0] == "times" and len(lower) > 1:
        return ()
    if _NO_UNITS.intersection(lower) or any(_NO_UNITS.intersection(word.split("-")) for word in lower):
        return ()
    return tuple(_singular(word) for word in lower)


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return f"{word[:-3]}y" if word.endswith("ies") else word[:-1]
    return word
