"""Makes wrong answers of the same form as a right one."""

from __future__ import annotations

import re

_DIGITS = re.compile(r"\d+", re.ASCII)
_LETTER = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]+")
_OTHER = "17"
"""Used if an answer has no digit and no letter, and therefore different from it."""


def perturbed(answer: str) -> str:
    """A wrong answer of the same form: the first number plus 1, or the first word with another last letter.

    Example:
        perturbed("12 apples")  # "13 apples"
    """
    if found := _DIGITS.search(answer):
        return f"{answer[: found.start()]}{int(found[0]) + 1}{answer[found.end() :]}"
    if found := _LETTER.search(answer):
        last = found[0][-1]
        other = {"z": "a", "Z": "A"}.get(last) or chr(ord(last) + 1)
        return f"{answer[: found.end() - 1]}{other}{answer[found.end() :]}"
    return _OTHER
