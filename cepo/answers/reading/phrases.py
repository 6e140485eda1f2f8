"""Phrases that say one thing in several ways: that there is no solution, or no value."""

from __future__ import annotations

import re

_PHRASES = {
    "no solution": (
        r"(?:there (?:is|are) |(?:(?:the |this )?(?:equation|system|problem|inequality) |it )?has )?no solutions?"
        r"(?: exists?)?"
    ),
    "no real solution": (
        r"(?:there (?:is|are) |(?:(?:the |this )?(?:equation|system|problem|inequality) |it )?has )?"
        r"no real (?:solution|root)s?(?: exists?)?"
    ),
    "does not exist": r"dne|(?:(?:the )?limit |it )?(?:does not|doesn t|doesn't) exist",
    "infinitely many": r"(?:there are )?infinitely many(?: solutions)?|(?:an )?infinite(?: number of)? solutions",
    "impossible": r"(?:it is |it s |it's )?(?:impossible|not possible)",
    "undefined": r"(?:it is |it s |it's )?(?:undefined|not defined)",
    "all real numbers": r"(?:all|any|every) reals?(?: numbers?)?(?: x)?",
}
_PATTERNS = {meaning: re.compile(pattern, re.IGNORECASE) for meaning, pattern in _PHRASES.items()}


def meaning(text: str) -> str:
    """What a phrase says, in one wording; the text itself if it is not in the table.

    Example:
        meaning("There are no solutions")  # "no solution"
    """
    return next((said for said, pattern in _PATTERNS.items() if pattern.fullmatch(text)), text)
