r"""Normalises the notation of an answer: Unicode, LaTeX decoration, spelling and plain numbers.

Pure string work, linear in the text. Normalising preserves the value (`0.5` and `\frac{1}{2}` become `1/2`), so answers
with equal normalised texts are equal; the reverse does not hold.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MAX_ANSWER_CHARACTERS = 1000
"""A longer text is no answer: no reference is as long, and parsers could hang on it."""
MIN_WORD = 4
"""Consecutive letters that make a word; fewer may be a product of variables, whose order does not matter."""

_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_SPELLINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)(?![a-zA-Z])", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|sf|it)|boldsymbol|bm|underline|mbox)\s*\{([^{}]*)\}", r"\1"),
        (r"\\(?:display|text)style(?![a-zA-Z])", ""),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset"),
        (r"\{,\}|(?<=\d)\\,(?=\d{3}(?!\d))", ","),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;: ]|~", " "),
        (r"\\([%$])", r"\1"),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree|\u00b0", ""),
    )
)
_CURRENCY = re.compile(r"^([-+]?)\s*[$\u20ac\u00a3\u00a5]\s*(?=[-+]?[\d.])")
_LOOSE_SPACE = re.compile(r"(?<![^\W_]) +| +(?![^\W_])")
_DECIMAL = re.compile(r"([-+]?) *(\d{1,3}(?:,\d{3})+|\d*)(\.\d*)?")
_RATIO = re.compile(r"([-+]?) *(?:(\d+) */ *(\d+)|\\frac *\{ *([-+]?\d+) *\} *\{ *(\d+) *\}|\\frac *(\d) *(\d))")
_LETTERS = re.compile(r"[^\W\d_]+(?:[ '-]+[^\W\d_]+)*")
_WORD = re.compile(rf"[^\W\d_]{{{MIN_WORD}}}")


def normalise(answer: str) -> str:
    """One spelling: numbers as reduced fractions, words in lower case, anything else without LaTeX decoration.

    The result is empty if the answer is empty, only decoration, or too long.

    Example:
        normalise("1,234.50")  # "2469/2"
    """
    text = respelt(answer)
    percent = "%" if text.endswith("%") else ""
    number = as_number(text.removesuffix("%").strip())
    if number is not None:
        return f"{number}{percent}"
    text = _LOOSE_SPACE.sub("", re.sub(r"\s+", " ", text)).strip()
    return text.casefold() if is_words(text) else text


def respelt(answer: str) -> str:
    """An answer without LaTeX decoration, currency signs and a final full stop; empty if the answer is too long."""
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return ""
    text = plain(answer)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return _CURRENCY.sub(r"\1", _undelimited(text).removesuffix(".").strip())


def plain(answer: str) -> str:
    """An answer without math delimiters and invisible characters, with ASCII digits and minus signs."""
    return _undelimited("".join(map(_plain_character, answer)))


def as_number(text: str) -> Fraction | None:
    """The value of a plain number, `1,234.50`, `-3/4` or `\\frac{3}{4}`; None for anything else."""
    if found := _DECIMAL.fullmatch(text):
        sign, whole, decimals = found[1], found[2].replace(",", ""), (found[3] or "").removeprefix(".")
        return Fraction(f"{sign}{whole or 0}.{decimals or 0}") if whole or decimals else None
    if found := _RATIO.fullmatch(text):
        above, below = (int(part) for part in found.groups()[1:] if part is not None)
        value = Fraction(above, below) if below else None
        return -value if value is not None and found[1] == "-" else value
    return None


def is_words(text: str) -> bool:
    """Whether an answer is words and not mathematics."""
    return _LETTERS.fullmatch(text) is not None and _WORD.search(text) is not None


def _undelimited(text: str) -> str:
    text = text.strip()
    for opening, closing in _DELIMITERS:
        inner = text.removeprefix(opening).removesuffix(closing)
        if len(inner) == len(text) - len(opening) - len(closing) and opening not in inner:
            return _undelimited(inner)
    return text


def _plain_character(character: str) -> str:
    """Decimal digits and minus signs as ASCII, white space as a blank, and an empty string for invisible characters."""
    if character.isascii() and character.isprintable():
        return character
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    if character.isspace():
        return " "
    if character in "\u2212\u2013":
        return "-"
    return "" if unicodedata.category(character).startswith("C") else character
