"""Chinese units and measure words behind a number."""

from __future__ import annotations

import re

_SYMBOLS = {
    "\u5e73\u65b9": "square", "\u7acb\u65b9": "cubic", "\u7c73": "m", "\u5206\u7c73": "dm", "\u5398\u7c73": "cm",
    "\u6beb\u7c73": "mm", "\u5343\u7c73": "km", "\u516c\u91cc": "km", "\u514b": "g", "\u5343\u514b": "kg",
    "\u516c\u65a4": "kg", "\u5428": "t", "\u79d2": "s", "\u5206\u949f": "min", "\u5c0f\u65f6": "h", "\u5929": "day",
    "\u5e74": "year", "\u5143": "yuan", "\u7f8e\u5143": "$", "\u5ea6": "\u00b0", "\u5347": "L", "\u6beb\u5347": "mL",
}  # fmt: skip
_UNIT = re.compile("|".join(sorted(_SYMBOLS, key=len, reverse=True)))
_NOUN = re.compile(
    r"(?:(?![\u4e07\u4ebf\u5343\u767e\u5341\u534a\u500d\u5206\u591a\u4f59\u4ee5\u6216\u5230\u81f3\u548c\u4e0e\u4e0d\u975e\u5c11\u5c0f\u5927\u4e8e\u7ea6])[\u4e00-\u9fff]){1,4}"
)
"""Up to four characters, none of which changes the number before them: ten thousand, half, times, or, to, and, not."""


def in_symbols(text: str) -> str:
    """A text with the Chinese names of units as symbols: square and kilometre become `square km`."""
    return text if text.isascii() else _UNIT.sub(lambda unit: f"{_SYMBOLS[unit[0]]} ", text).strip()


def is_noun(text: str) -> bool:
    """Whether a text can be what a number counts."""
    return _NOUN.fullmatch(text) is not None
