"""Reads multiple-choice answers: one letter, several letters, a letter with its option's text, or the text alone."""

from __future__ import annotations

import re

from cepo.answers.notation import normalise, respelt

_PREFIX = re.compile(
    r"(?:the )?(?:(?:correct|right|final|best) )?(?:options?|choices?|answers?)(?: (?:is|are))?\s*:?\s*", re.IGNORECASE
)
_LETTERS = re.compile(r"\(?[A-Za-z]\)?(?:(?: *[,;/&] *| +)(?:and +|or +)?\(?[A-Za-z]\)?)*")
_RUN = re.compile(r"[A-Z]{2,10}")
_LABELLED = re.compile(r"\(?([A-Za-z])(?:\)|[.:]| -)(?=\s|$|[^\W\d_]{3}) *(\S.*)?")
_INFERRED = re.compile(r"\(?[A-J]\)?|\(?[A-J](?:\)|[.:]) +[^\W\d].*")
_OPTION = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)


def options(question: str) -> dict[str, str]:
    """The options that a question lists on separate lines, as a dictionary from normalised text to letter.

    Example:
        options("Where?\\nA. a park\\nB. a library")  # {"a park": "A", "a library": "B"}
    """
    found = {normalise(text): letter for letter, text in _OPTION.findall(question)}
    return found if len(found) > 1 else {}


def looks_like_choice(reference: str) -> bool:
    """Whether a reference is a letter from A to J: bare, in parentheses, or with its option's text."""
    return _INFERRED.fullmatch(_cleaned(reference)) is not None


def chosen(answer: str, listed: dict[str, str]) -> frozenset[str]:
    """The letters that an answer names; empty if it names none.

    Args:
        listed: letters by the normalised text of their option, as `options` returns them.
    """
    text = _cleaned(answer)
    if letter := listed.get(normalise(text)):
        return frozenset(letter)
    if _RUN.fullmatch(text) and len(set(text)) == len(text):
        return frozenset(text)
    if _LETTERS.fullmatch(text):
        words = re.findall(r"[A-Za-z]+", text)
        return frozenset(word.upper() for word in words if word not in ("and", "or"))
    if found := _LABELLED.fullmatch(text):
        return frozenset(found[1].upper())
    return frozenset()


def labelled_option(reference: str) -> dict[str, str]:
    """The option that a reference spells out (`C. a library`), in the form of `options`."""
    found = _LABELLED.fullmatch(_cleaned(reference))
    return {normalise(found[2]): found[1].upper()} if found and found[2] else {}


def _cleaned(answer: str) -> str:
    text = re.sub(r"\s+", " ", respelt(answer)).strip(" *")
    return _PREFIX.sub("", text, count=1) if _PREFIX.match(text) else text
