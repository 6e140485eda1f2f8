r"""Normalises the notation of an answer: Unicode, LaTeX decoration, spelling and plain numbers.

Pure string work, linear in the text. Normalising preserves the value (`0.5` and `\frac{1}{2}` become `1/2`), so answers
with equal normalised texts are equal; the reverse does not hold.
"""

from __future__ import annotations

import re
from functools import lru_cache

from cepo.answers.reading.characters import to_ascii
from cepo.answers.reading.decoration import undecorated
from cepo.answers.reading.numerals import as_number as as_number

MAX_ANSWER_CHARACTERS = 1000
"""A longer text is no answer: no reference is as long, and parsers could hang on it."""
MIN_WORD = 4
"""Consecutive letters that make a word; fewer may be a product of variables, whose order does not matter."""
_DELIMITERS = (
    ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("`", "`"), ('"', '"'), ("``", "''"), ("**", "**"),
)  # fmt: skip
_INLINE = re.compile(r"(?<![\\\w$])\$(?=[^$\s])([^$]*[^$\s\\])\$(?![\d$])|\\\((.*?)\\\)")
_THOUSANDS = re.compile(r"\{,\}|(?<=\d)(?:\\,|, *\\!|\\!, *) *(?=\d{3}(?!\d))")
_COLON = re.compile(r"(?<![a-zA-Z])\{:\}")
_INTRODUCTION = (
    r"(?:(?:so|thus|hence|therefore),? +)?(?:the +)?(?:final +|correct +|right +|exact +)?"
    r"(?:ans(?:wer)?|result|value|total|sum)(?: +(?:is|=)(?![a-zA-Z])|(?: +is)? *:)"
)
_NEAR = (
    r"about|we get|we have|it equals|it is|which is|equals|approximately|approx\.?|exactly|roughly|around|circa|ca\."
    r"|\\approx|\\sim|~|="
)
_CHANGED = (
    r"(?:not|[a-z]+n't|none|no|never|neither|nor|than|at least|at most|except|without|or|wrong|false|incorrect|half"
    r"|twice|thrice|double|triple|plus|minus|if|unless|but)"
)
SUBJECT = (
    rf"(?!(?:[A-Za-z'-]+,? ){{0,8}}{_CHANGED}\b)(?:[A-Za-z']+,? ){{1,8}}"
    r"(?:is|are|has|have|gets?|earns?|makes?|pays?|costs?|needs?|weighs?|takes?|equals|was)(?: equal to| exactly| now)?"
)
"""A subject and its verb before a number, `The perimeter is`, without a word that changes or denies the number."""
_LEADING = re.compile(
    rf"(?:{_INTRODUCTION}) *:? *|\\text *\{{ *(?:{_INTRODUCTION}|(?:{_NEAR})) *:? *\}} *|(?:{_NEAR}) *(?=[-+\d\\$(.])"
    rf"|\\text *\{{ *{SUBJECT} *\}} *|{SUBJECT} +(?=[-+\d$.])",
    re.IGNORECASE,
)
_LEADING_IN_TEXT = re.compile(
    rf"\\text *\{{ *(?:{_INTRODUCTION} *:?|(?:{_NEAR})(?= *[-+\d])|{SUBJECT}(?= *[-+\d$])) *", re.IGNORECASE
)
_SIGNED_OFF = re.compile(
    r"(?:\\(?:checkmark|blacksquare|qed)|[\u2713\u2714\u2705\u2611\ufe0f\u2728\U0001f389\U0001f3af\U0001f44d\U0001f60a\U0001f600])$"
)
"""A tick or picture behind an answer."""
_CLOSING = r"\(?(?:approx\.?|approximately|exactly)\)?"
_TRAILING = re.compile(
    rf" *(?:\\text *\{{ *(?:{_CLOSING}|is +the +(?:final +|correct +)?answer) *\}}"
    r"|\((?:approx\.?|approximately|exactly)\))$",
    re.IGNORECASE,
)
_TEXT = re.compile(r"\\text *\{((?:[^{}]|\{[^{}]*\})*)\}")
_CURRENCY = re.compile(r"^([-+]?)\s*[$\u20ac\u00a3\u00a5\u20b9]\s*(?=[-+]?[\d.])")
_LOOSE_SPACE = re.compile(r"(?<![^\W_]) +| +(?![^\W_])")
_SINGLE = re.compile(r"([\^_])\{([a-zA-Z0-9])\}")
_STARS = re.compile(r"^\*+|\*{2,}$|(?<![A-Za-z])\*$|(?<=[A-Za-z]{3})\*$")
_LETTERS = re.compile(r"[^\W\d_]+(?:[ '-]+[^\W\d_]+)*")
_WORD = re.compile(rf"[^\W\d_]{{{MIN_WORD}}}")


def normalise(answer: str) -> str:
    """One spelling: numbers as reduced fractions, words in lower case, anything else without LaTeX decoration.

    The result is empty if the answer is empty, only decoration, or too long.

    Example:
        normalise("1,234.50")  # "2469/2"
    """
    text = _CURRENCY.sub(r"\1", respelt(answer))
    if text.endswith("\u00b0") and as_number(text[:-1].strip()) is not None:
        text = text[:-1].strip()
    percent = "%" if text.endswith("%") else ""
    number = as_number(text.removesuffix("%").strip())
    if number is not None:
        return f"{number}{percent}"
    return loosened(text)


def loosened(text: str) -> str:
    """A text without the blanks that have no meaning, and in lower case if it is words."""
    text = _LOOSE_SPACE.sub("", re.sub(r"\s+", " ", text)).strip()
    text = _SINGLE.sub(r"\1\2", text)
    return text.casefold() if is_words(text) else text


def respelt(answer: str) -> str:
    """An answer as `plain` writes it, with words as words; empty if the answer is too long."""
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return ""
    return _stopped(_TEXT.sub(r"\1", plain(answer)))


@lru_cache(maxsize=4096)
def plain(answer: str) -> str:
    r"""An answer in ASCII and one LaTeX, without delimiters, decoration, hedges and a final full stop.

    Words inside mathematics stay in `\text{...}`.

    Example:
        plain("$\\mathbf{\\text{about }}\\dfrac{1}{2}\\,\\mathrm{cm}$")  # "\\frac{1}{2} \\text{cm}"
    """
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return answer
    text = _undelimited(to_ascii(answer))
    text = undecorated(_THOUSANDS.sub(",", _COLON.sub(":", text)))
    text = _undelimited(_INLINE.sub(_inline, text))
    text = _SIGNED_OFF.sub("", text).strip() or text
    return _stopped(_unhedged(_ungrouped(text)))


def unstarred(text: str) -> str:
    """A text without the asterisks of bold and italic type around it; the star of `A*` stays."""
    return _STARS.sub("", text)


def is_words(text: str) -> bool:
    """Whether an answer is words and not mathematics."""
    return _LETTERS.fullmatch(text) is not None and _WORD.search(text) is not None


def _stopped(text: str) -> str:
    """A text without its final full stop; dots of `0.333...` stay."""
    return text.strip() if text.endswith("..") else text.removesuffix(".").strip()


def _inline(formula: re.Match[str]) -> str:
    return str(formula[1] or formula[2] or "")


def _unhedged(text: str) -> str:
    """A text without the words that only introduce an answer: `The answer is`, `about`, a leading `=`."""
    for _ in range(2):
        if (introduction := _LEADING.match(text)) and introduction.end() < len(text):
            text = text[introduction.end() :]
        elif introduction := _LEADING_IN_TEXT.match(text):
            text = f"\\text{{{text[introduction.end() :]}"
    return _TRAILING.sub("", text) if text.endswith((")", "}")) else text


def _ungrouped(text: str) -> str:
    """A text without braces around all of it."""
    while text.startswith("{") and text.endswith("}"):
        depth = 0
        for position, character in enumerate(text):
            depth += {"{": 1, "}": -1}.get(character, 0)
            if depth == 0 and position < len(text) - 1:
                return text
        text = text[1:-1].strip()
        if "," in text and as_number(text.lstrip("$")) is None:
            return f"{{{text}}}"  # a set without backslashes
    return text


def _undelimited(text: str) -> str:
    text = text.strip()
    for opening, closing in _DELIMITERS:
        inner = text.removeprefix(opening).removesuffix(closing)
        if len(inner) == len(text) - len(opening) - len(closing) and opening not in inner.replace("\\$", ""):
            return _undelimited(inner)
    return text
