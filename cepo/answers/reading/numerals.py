r"""Reads plain numbers exactly: decimals, fractions, mixed numbers, repeating decimals, number words, ordinals."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from cepo.answers.reading.lists import words

MAX_EXPONENT = 300
"""Numbers with a larger power of ten are left to the algebra, which may run out of time."""
GROUPED = r"\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?!\d)|\d{1,2}(?:,\d\d)+,\d{3}(?!\d)"
"""Digits with separators of thousands: `1,234`, `1 234`, and `1,23,456` as in India."""
REPEATING = (
    r"\d*\.\d*\\(?:overline|bar) *\{ *\d+ *\}|\d*\.\d*\\dot *\{ *\d *\}\d+\\dot *\{ *\d *\}"
    r"|\d*\.\d*(?:\\dot *\{ *\d+ *\})+|\d*\.\d*\\dot *\d"
    r"|\d*\.\d*\(\d+\)|\d*\.\d{3,} *(?:\.\.\.|\\[lc]?dots)"
)
r"""Decimals with digits that repeat without end: `0.\overline{3}`, `0.\dot{3}`, `0.(3)` and `0.333...`."""
_DECIMAL = re.compile(rf"([-+]?) *({GROUPED}|\d*)(\.\d*)?")
_RATIO = re.compile(
    r"([-+]?) *(?:(\d+) */ *(\d+)|\\frac *\{ *([-+]?\d+) *\} *\{ *([-+]?\d+) *\}|\\frac *(\d) *(\d)"
    r"|\\frac *(\d) *\{ *(\d+) *\}|\\frac *\{ *([-+]?\d+) *\} *(\d))"
)
_REPEATING = re.compile(rf"([-+]?) *({REPEATING})")
_POWER = re.compile(
    r" *(?:[eE]([-+]?\d{1,4})|(?:\\times|\\cdot|\*|x) *10 *(?:\^|\*\*) *"
    r"(?:\{ *([-+]?\d{1,4}) *\}|([-+]?\d{1,4})))(?![\d.])"
)
_POWER_ALONE = re.compile(r"([-+]?) *10 *(?:\^|\*\*) *(?:\{ *([-+]?\d{1,4}) *\}|([-+]?\d{1,4}))(?![\d.])")
_MIXED = re.compile(
    r"([-+]?) *(\d+) *(?:\\frac *\{ *(\d+) *\} *\{ *(\d+) *\}|\\frac *(\d) *(\d)| +(\d+) */ *(\d+))(?!\d)"
)
_LONG = re.compile(rf"[-+]? *(?:{REPEATING}|(?:{GROUPED}|\d+)(?:\.\d*)?|\.\d+)")
_FRACTION = re.compile(r"[-+]? *(?:\d+ */ *[-+]?\d|\\frac(?![a-zA-Z]))")
_UNITS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
"""Words that multiply the number before them by a power of ten."""
PARTS = {
    "half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "hundredth": 100, "thousandth": 1000,
}  # fmt: skip
"""Words for fractions, by their denominator."""
_BASE = re.compile(
    r"\(?(-?[\dA-Fa-f]+)\)? *(?:_ *(?:\{ *(?:\\text *\{)? *(?:base *\}? *)?(\w+) *\}? *\}|(\d+))"
    r"|(?:\\text *\{)? *\(? *(?:in +)?base *\}? *(\w+) *\)? *\}?)"
)
_ORDINAL = re.compile(r"(\d+) *\^? *\{?(?:st|nd|rd|th)\}?")


@dataclass(frozen=True)
class Numeral:
    """A plain number at the beginning of a text."""

    value: Fraction
    end: int
    """Where it ends in the text."""
    decimals: int = -1
    """How many decimals it is written with; -1 for an exact form: an integer, a fraction, a repeating decimal."""


def numeral(text: str) -> Numeral | None:
    r"""The plain number that a text begins with, with its power of ten; None if there is none.

    Example:
        numeral("2.50\\times 10^{2} m")  # Numeral(Fraction(250), end=18, decimals=0)
    """
    if (mixed := _MIXED.match(text)) and (value := _mixed(mixed)) is not None:
        return Numeral(value, mixed.end())
    if power := _POWER_ALONE.match(text):
        return _scaled(Fraction(-1 if power[1] == "-" else 1), 0, int(power[2] or power[3]), power.end())
    if _FRACTION.match(text):
        ratio = _RATIO.match(text)
        value = as_number(ratio[0].strip()) if ratio else None
        return Numeral(value, ratio.end()) if ratio and value is not None and text[ratio.end() :][:1] != "^" else None
    number = _LONG.match(text)
    value = as_number(number[0].strip()) if number else None
    if number is None or value is None:
        return None
    decimals = -1 if _REPEATING.fullmatch(number[0]) else _decimals(number[0])
    if power := _POWER.match(text, number.end()):
        exponent = int(power[1] or power[2] or power[3])
        return _scaled(value, decimals, exponent, power.end())
    return Numeral(value, number.end(), decimals)


def as_number(text: str) -> Fraction | None:
    r"""The value of a plain number, `1,234.50`, `-3/4`, `\frac{3}{4}` or `0.\overline{3}`; None for anything else."""
    if decimal := _DECIMAL.fullmatch(text):
        sign, whole, decimals = decimal[1], re.sub("[, ]", "", decimal[2]), (decimal[3] or "").removeprefix(".")
        return Fraction(f"{sign}{whole or 0}.{decimals or 0}") if whole or decimals else None
    if ratio := _RATIO.fullmatch(text):
        above, below = (int(part) for part in ratio.groups()[1:] if part is not None)
        value = Fraction(above, below) if below else None
        return -value if value is not None and ratio[1] == "-" else value
    if endless := _REPEATING.fullmatch(text):
        value = repeating(endless[2])
        return -value if value is not None and endless[1] == "-" else value
    return None


def repeating(text: str) -> Fraction | None:
    r"""The value of a repeating decimal; None if the digits before `...` do not repeat.

    Example:
        repeating("0.1\\overline{6}")  # Fraction(1, 6)
    """
    whole, _, rest = text.partition(".")
    start, period = re.sub(r"[^\d\\(.]", "", rest.replace("\\overline", "(").replace("\\bar", "(")), ""
    if "\\dot" in rest and not rest.rstrip().endswith(("dots", "...")):
        first, _, dotted = rest.partition("\\dot")
        start, period = first, re.sub(r"\D", "", dotted)
    elif "(" in start:
        start, _, period = start.partition("(")
    else:
        start, period = _period(re.sub(r"\D", "", rest))
    if not period:
        return None
    shift = 10 ** len(start)
    return (
        Fraction(int(whole or 0))
        + Fraction(int(start or 0), shift)
        + Fraction(int(period), shift * (10 ** len(period) - 1))
    )


def words_number(text: str) -> Fraction | None:
    """The number that words spell, up to millions, also as a fraction; None for other words.

    Example:
        words_number("minus twenty-one")  # Fraction(-21)
    """
    words = re.sub(r"[\s-]+", " ", text.casefold()).strip().split(" ")
    if words[0] in ("minus", "negative") and len(words) > 1:
        value = words_number(" ".join(words[1:])) if words[1] not in ("minus", "negative") else None
        return -value if value is not None else None
    if len(words) > 3 and words[-3:] == ["and", "a", "half"] and (whole := _whole(words[:-3])) is not None:
        return whole + Fraction(1, 2)
    if len(words) > 1 and (part := _part(words[-1])):
        above = Fraction(1) if words[:-1] in (["a"], ["an"]) else _whole(words[:-1])
        return above / part if above is not None else None
    if words == ["half"] or words == ["a", "half"]:
        return Fraction(1, 2)
    return _whole(words)


def in_base(text: str) -> tuple[str, int] | None:
    """The digits and the base of a number that states its base, in digits or as a word; None for other texts.

    Example:
        in_base("4210_{\\text{five}}")  # ("4210", 5)
    """
    based = _BASE.fullmatch(text)
    if based is None:
        return None
    name = based[2] or based[3] or based[4]
    base = Fraction(int(name)) if name.isdigit() else words_number(name)
    return (based[1].upper(), int(base)) if base else None


def ordinal(text: str) -> Fraction | None:
    """The number of an ordinal in digits, `21st` or `5^{th}`; None for other texts."""
    order = _ORDINAL.fullmatch(text)
    return Fraction(int(order[1])) if order else None


def _mixed(mixed: re.Match[str]) -> Fraction | None:
    whole, above, below = (int(part) for part in mixed.groups()[1:] if part is not None)
    if not 0 < above < below:
        return None  # 2\frac{3}{2} is a product
    value = whole + Fraction(above, below)
    return -value if mixed[1] == "-" else value


def _scaled(value: Fraction, decimals: int, exponent: int, end: int) -> Numeral | None:
    if abs(exponent) > MAX_EXPONENT:
        return None
    value *= Fraction(10) ** exponent
    return Numeral(value, end, max(0, decimals - exponent) if decimals > 0 or exponent < 0 else -1)


def _decimals(number: str) -> int:
    _, point, after = number.partition(".")
    return len(after) if point and after else -1


def _period(digits: str) -> tuple[str, str]:
    """Splits `1666` into `1` and `6`: the digits before the shortest period that repeats to the end, and the period."""
    for length in range(1, len(digits) // 2 + 1):
        period = digits[-length:]
        times = 3 if length == 1 else 2
        if digits.endswith(period * times):
            start = digits
            while start.endswith(period):
                start = start[:-length]
            return start, period
    return digits, ""


def _part(word: str) -> int | None:
    return PARTS.get(word) or PARTS.get(word.removesuffix("s"))


def _whole(words: list[str]) -> Fraction | None:
    total, current, seen = 0, 0, False
    for index, word in enumerate(words):
        if word == "and" and seen and index + 1 < len(words):
            continue
        if word in _UNITS:
            if seen and not (
                current % 100 == 0 or (current % 10 == 0 and current % 100 >= 20 and _UNITS.index(word) < 10)
            ):
                return None
            current += _UNITS.index(word)
        elif word in _TENS:
            if current % 100:
                return None
            current += 10 * (_TENS.index(word) + 2)
        elif word == "hundred" and seen and 0 < current < 10:
            current *= 100
        elif word in SCALES and word != "hundred" and seen and current:
            total, current = total + current * 10 ** SCALES[word], 0
        else:
            return None
        seen = True
    return Fraction(total + current) if seen else None
