"""Cuts an answer at its top-level separators: commas, `and`, relation signs, never inside brackets."""

from __future__ import annotations

import re
from functools import lru_cache

from cepo.answers.notation import plain

_OPENING = r"\\begin\s*\{[^{}]*\}|\\\{|\\(?:langle|lbrace|lbrack|lfloor|lceil)(?![A-Za-z])|[(\[{]"
_CLOSING = r"\\end\s*\{[^{}]*\}|\\\}|\\(?:rangle|rbrace|rbrack|rfloor|rceil)(?![A-Za-z])|[)\]}]"
_BRACKET = re.compile(rf"(?P<opening>{_OPENING})|(?P<closing>{_CLOSING})|\\\\|\\[A-Za-z]+")
_TIDIED = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|[bB]igg?[lrm]?|middle)(?![A-Za-z])\s*\.?(?=[^\w\s.]|\\)", ""),
        (r"\\(?:display|text|script)style(?![A-Za-z])|\\limits(?![A-Za-z])", ""),
        (r"(?<=\d)(?:,\\!|\{,\}|\\,)\s*(?=\d{3}(?!\d))", ","),
        (r"\\!", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\lbrack(?![A-Za-z])", "["),
        (r"\\rbrack(?![A-Za-z])", "]"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\colon(?![A-Za-z])", ":"),
        (r"\uff0c|\u3001", ", "),
        (r"\uff08", "("),
        (r"\uff09", ")"),
        (r"\uff1d", "="),
        (r"\uff1a", ":"),
        (r"\u2228", r"\\lor "),
        (r"\u2227", r"\\land "),
        (r"\u222a", r"\\cup "),
        (r"\u2229", r"\\cap "),
        (r"\u221e", r"\\infty "),
        (r"\u00b1", r"\\pm "),
        (r"\u27e8", r"\\langle "),
        (r"\u27e9", r"\\rangle "),
        (r"\u2026|\\(?:cdots|dotsc?|dots[bmo])(?![A-Za-z])|(?<![\d.])\.\.\.+", r"\\ldots "),
        (r"\\(?:infin|infinity)(?![A-Za-z])", r"\\infty"),
    )
)
_WORDED = re.compile(r"\\(?:text(?:rm|bf|it|sf|normal)?|mathrm|mbox)\s*\{([^{}]*)\}")
_CONNECTIVE = re.compile(r"\s*(?:,|;)\s*(?:and|or)\b\s*|\s*[,;]\s*|\s*\b(and|or)\b\s*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SEPARATOR = r",\s*(?:(?:and|or)(?![A-Za-z]))?|;|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])"
_LOGICAL = r"|\\(?:land|lor|wedge|vee)(?![A-Za-z])"
_COMPARED = re.compile(r"[=<>\u2264\u2265]|\\(?:leq?|geq?|lt|gt|in)(?![A-Za-z])")
_GROUPED = r",(?!(?<=\d,)\d{3}(?!\d))" + _SEPARATOR.removeprefix(",")


@lru_cache(maxsize=64)
def _pattern(separator: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<separator>{separator})|(?P<opening>{_OPENING})|(?P<closing>{_CLOSING})|\\\\|\\[A-Za-z]+")


def tidy(text: str) -> str:
    """An answer without sizes, spacing commands and delimiters, with one spelling of brackets, dots and infinity."""
    text = plain(text)
    for pattern, replacement in _TIDIED:
        text = pattern.sub(replacement, text)
    text = _WORDED.sub(_connected, text.strip())
    return plain(text).removesuffix(".").strip() if not text.endswith("\\ldots") else text


def _connected(worded: re.Match[str]) -> str:
    """Text with its connectives outside of it: `\\text{ cows and }` becomes `\\text{ cows} and `."""
    words = worded[1]
    if re.search(r"[()\[\]]", words) or (words.strip() and not re.search(r"[^\W\d_]", words)):
        return words  # mathematics in text mode, as in `\\text{[2, 5]}`
    if not _CONNECTIVE.search(words):
        return worded[0]
    parts, last = [], 0
    for mark in _CONNECTIVE.finditer(words):
        parts += [words[last : mark.start()], f" {mark[0].strip()} "]
        last = mark.end()
    parts.append(words[last:])
    return "".join(f"\\text{{{part}}}" if place % 2 == 0 and part.strip() else part for place, part in enumerate(parts))


def cut(text: str, separator: str) -> tuple[list[str], list[str]]:
    """The parts of a text between its top-level separators, and the separators; one part if brackets do not match.

    Args:
        separator: a regular expression without groups.
    """
    parts, separators, depth, start = [], [], 0, 0
    for token in _pattern(separator).finditer(text):
        if token["opening"]:
            depth += 1
        elif token["closing"]:
            depth -= 1
            if depth < 0:
                return [text.strip()], []
        elif token["separator"] and not depth:
            parts.append(text[start : token.start()].strip())
            separators.append(token["separator"].strip())
            start = token.end()
    parts.append(text[start:].strip())
    return (parts, separators) if depth == 0 else ([text.strip()], [])


def elements(text: str, *, bracketed: bool) -> tuple[list[str], list[str]]:
    """The elements of a list and their separators. A comma before three digits separates thousands in `1,000, 2,000`.

    Args:
        bracketed: whether brackets stood around the text: then `5,120` is two elements, as no blank follows a comma.
    """
    grouped = _THOUSANDS.search(text) is not None and (not bracketed or ", " in text)
    return cut(text, (_GROUPED if grouped else _SEPARATOR) + (_LOGICAL if _COMPARED.search(text) else ""))


def enclosed(text: str) -> tuple[str, str, str] | None:
    """The opening bracket, the content and the closing bracket of a text that one pair of brackets encloses."""
    depth, opening = 0, ""
    for token in _BRACKET.finditer(text):
        if token["opening"]:
            opening = opening or token[0]
            depth += 1
        elif token["closing"]:
            depth -= 1
            if depth <= 0:
                whole = depth == 0 and token.end() == len(text) and text.startswith(opening)
                return (opening, text[len(opening) : token.start()].strip(), token[0]) if whole else None
    return None
