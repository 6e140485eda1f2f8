r"""Final answers: where a response or a reference holds its answer, and one spelling for answers that are equal.

Pure string work, linear in the text; what needs algebra is the verifier's. Normalising only rewrites what is equal
(`0.5` and `\frac{1}{2}` become `1/2`), so equal normalised texts are equal answers; the reverse does not hold.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from cepo.errors import UserError

MAX_ANSWER_CHARACTERS = 1000
"""What is longer is no answer: nothing a reference would be compared with, and a hazard for every parser."""
KINDS = ("", "math")
"""How an answer is compared; empty: inferred from the reference."""
MIN_WORD = 4
"""Letters in a row that make a text: fewer may be a product of variables, whose order does not matter."""

_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_GSM8K = re.compile(r"####[ \t]*([-+\u2212$\u20ac\u00a3]*\d[\d,.]*%?)[ \t]*$", re.MULTILINE)
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_SPELLINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)(?![a-zA-Z])", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\1"),
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


def extract(text: str) -> str | None:
    r"""The final answer of a response as it is written: what the last `\boxed{...}` holds, else GSM8K's `#### n`.

    None where there is none: no box, an empty one, one that never closes, or more than MAX_ANSWER_CHARACTERS.
    """
    boxes = list(_BOX.finditer(text))
    if boxes:
        answer = _until_closed(text, boxes[-1].end())
    else:
        finals = _GSM8K.findall(text)
        answer = finals[-1] if finals else ""
    answer = answer.strip().encode("utf-8", "replace").decode("utf-8")  # a lone surrogate would not travel
    return answer if normalise(answer) else None


def reference_of(text: str) -> str:
    r"""The answer a reference stands for: that of its box or `####` line if it has one, else the whole text.

    Raises:
        UserError: nothing is left; names the value.
    """
    marked = _BOX.search(text) or _GSM8K.search(text)
    answer = extract(text) if marked else text.strip()
    if not answer or not normalise(answer):
        raise UserError(
            f"reference answer {_shown(text)} holds no answer; write the bare answer, \\boxed{{answer}} or a solution "
            f"that ends in '#### number', of at most {MAX_ANSWER_CHARACTERS} characters"
        )
    return answer


def check_reference(text: str) -> str:
    """The normalised answer of a reference.

    Raises:
        UserError: it holds no answer; names the value.
    """
    return normalise(reference_of(text))


def check_kind(kind: str) -> None:
    """Refuses a kind of answer that nothing here compares.

    Raises:
        UserError: names the kind and the ones there are.
    """
    if kind not in KINDS:
        raise UserError(f"answer kind {_shown(kind)} is unknown; leave it empty or use one of {', '.join(KINDS[1:])}")


def normalise(answer: str) -> str:
    """One spelling: numbers as reduced fractions, words in lower case, the rest without LaTeX's cosmetics.

    Empty for what is empty, only decoration, or too long.
    """
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return ""
    text = plain(answer)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = _CURRENCY.sub(r"\1", _undelimited(text).removesuffix(".").strip())
    percent = "%" if text.endswith("%") else ""
    number = as_number(text.removesuffix("%").strip())
    if number is not None:
        return f"{number}{percent}"
    text = _LOOSE_SPACE.sub("", re.sub(r"\s+", " ", text)).strip()
    return text.casefold() if is_words(text) else text


def plain(answer: str) -> str:
    """An answer without math delimiters and invisible characters, its digits and minus signs ASCII."""
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
    """Whether an answer is a text rather than mathematics."""
    return _LETTERS.fullmatch(text) is not None and _WORD.search(text) is not None


def _until_closed(text: str, start: int) -> str:
    depth = 1
    for found in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return text[start : found.start()]
    return ""


def _undelimited(text: str) -> str:
    text = text.strip()
    for opening, closing in _DELIMITERS:
        inner = text.removeprefix(opening).removesuffix(closing)
        if len(inner) == len(text) - len(opening) - len(closing) and opening not in inner:
            return _undelimited(inner)
    return text


def _plain_character(character: str) -> str:
    """Any decimal digit and any minus as ASCII, any white space as a blank, nothing for what cannot be seen."""
    if character.isascii() and character.isprintable():
        return character
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    if character.isspace():
        return " "
    if character in "\u2212\u2013":
        return "-"
    return "" if unicodedata.category(character).startswith("C") else character


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
