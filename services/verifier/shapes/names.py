"""Which sides of an equation name a quantity (`x`, `f(x)`, `\\angle ABC`, `a+b`) and which state its value."""

from __future__ import annotations

import re

_WORDED = re.compile(r"\\(?:text(?:rm|bf|it|sf|normal)?|mathrm|mathbf|mathit|mathcal|operatorname|mbox)\s*\{([^{}]*)\}")
_INDEX = re.compile(r"_\s*(?:\{[^{}]*\}|\\?\w+)|\^\s*\{?\s*(?:\(\w\)|\\prime|-1|\*|\\ast)\s*\}?|'+")
_ARGUMENT = re.compile(r"(?<=[A-Za-z}])\s*\([^()]*\)")
_DERIVATIVE = re.compile(
    r"\\[dt]?frac\s*\{\s*(?:d|\\partial)\s*\^?\d?\s*\w*\s*\}\s*\{\s*(?:d|\\partial)\s*\w+\s*\^?\d?\s*\}"
)
_ANGLE = re.compile(r"\\angle\s*\d+")
_MADE_OF = re.compile(r"\\[A-Za-z]+|\\\||[\s{}()\[\]|+\-*/:,!\u2220\u25b3]")
_LETTER = re.compile(r"[^\W\d_]")
_CONSTANTS = frozenset("ei")
_FUNCTION = re.compile(r"[fghFGHyY](?:\s*\(\s*[A-Za-z]\s*\))?")
_WORD = re.compile(r"[^\W\d_]{2,}")


def letters(text: str) -> set[str]:
    """The letters that stand for unknowns, without commands, words in `\\text{}`, and the constants e and i."""
    bare = re.sub(r"\\[A-Za-z]+", " ", _WORDED.sub(" ", re.sub(r"_\s*(?:\{[^{}]*\}|\w)", "", text)))
    return set(_LETTER.findall(bare)) - _CONSTANTS


def is_constant(text: str) -> bool:
    """Whether a text has no unknown in it: `2\\sqrt{3}`, `\\frac{\\pi}{2}`, `-\\infty`."""
    greek = re.search(
        r"\\(?!pi(?![a-z]))(?:[a-z]?(?:alpha|beta|gamma|delta|theta|lambda|mu|rho|phi|omega|epsilon|psi|chi))", text
    )
    return not greek and not letters(text)


def is_name(text: str) -> bool:
    """Whether a side has letters and no number outside of its indices and arguments, so that it states no value."""
    if text.lstrip().startswith(("-", "+")):
        return False
    bare = _ANGLE.sub(" x ", _DERIVATIVE.sub(" y ", text.strip()))
    for _ in range(2):
        bare = _ARGUMENT.sub("", _INDEX.sub("", bare))
    words = _WORDED.sub(lambda worded: f" {worded[1]} ", bare)
    if re.search(r"\\(?:pi|infty|emptyset|varnothing|mathbb|sqrt|begin|%|circ)(?![A-Za-z])", words):
        return False
    rest = re.sub(
        r"\\(?:alpha|beta|gamma|delta|theta|lambda|mu|rho|phi|varphi|omega|epsilon|psi|chi|sigma|tau|ell)(?![A-Za-z])",
        " x ",
        words,
    )
    rest = _MADE_OF.sub("", rest)
    return bool(rest) and all(character.isalpha() for character in rest) and not set(rest) <= _CONSTANTS


def is_unknown(text: str) -> bool:
    """Whether a text is one symbol or word without an operation, as `x`, `x_1`, `f(x)` or `\\theta`."""
    bare = _ARGUMENT.sub("", text)
    return is_name(text) and not re.search(r"[-+*/:|^,]|\\[dt]?frac", bare) and len(letters(bare)) <= 1


def restates(text: str) -> bool:
    """Whether a side is an expression in at least two unknowns, which an equation gives the value of: `2a + b = 12`."""
    return len(letters(text)) > 1


def same_name(one: str, other: str, *, functions: bool = False) -> bool:
    """Whether two sides name the same quantity.

    Args:
        functions: whether y, f(x) and g(x) count as the same name.
    """
    bare = [re.sub(r"\\(?:text|mathrm|mathbf|mathit)\s*\{([^{}]*)\}", r"\1", name) for name in (one, other)]
    bare = [re.sub(r"[\s{}]", "", name) for name in bare]
    return bare[0] == bare[1] or (functions and all(_FUNCTION.fullmatch(name) for name in bare))


def is_wordy(text: str) -> bool:
    """Whether a text has a word of two letters or more outside of LaTeX commands."""
    return _WORD.search(re.sub(r"\\[A-Za-z]+", " ", text)) is not None
