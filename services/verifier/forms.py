"""Rewrites answers of structured kinds (set, tuple, interval, matrix) to the form that the algebra compares."""

from __future__ import annotations

import re
from collections.abc import Callable

from cepo.answers.kinds import Kind
from services.verifier.shapes.comparing import Comparer, Same

_AND = re.compile(r",?\s*(?:\\(?:text|mathrm)\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*|;")
_QUAD = re.compile(r"\\q?quad(?![a-zA-Z])")
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\s*")
_ASSIGNED = re.compile(r"^[A-Za-z](?:_\w)?\s*(?:=|\\in(?![a-zA-Z]))\s*")
_MATRIX = re.compile(
    r"\\(begin|end)\s*\{(?:[bB]|p|small)?(?:matrix)\*?\}|\\(begin|end)\s*\{array\}(?:\s*\{[lcr| ]*\})?"
)
_ANGLES = {"\\langle": "(", "\\rangle": ")"}
_BRACES = (("\\{", "\\}"), ("\\lbrace", "\\rbrace"))
_RELATION = re.compile(r"=|<|>|\\(?:leq?|geq?|neq?|lt|gt|equiv|approx)(?![a-zA-Z])|[\u2264\u2265\u2260]")


def same_form(answer: str, reference: str, kind: Kind, same: Same) -> bool | None:
    """Whether two answers are equal by their structure; None if only algebra can tell.

    Example:
        same_form("x = 5, y = 3", "y = 3, x = 5", Kind("math"), decide_element)  # True

    Args:
        same: compares two elements, values without structure.
    """
    return Comparer(kind, same).texts(answer, reference)


def as_form(kind: str, answer: str) -> str:
    """The answer in the form of its kind; unchanged if the kind has none."""
    return _FORMS[kind](answer) if kind in _FORMS else answer


def fits_form(kind: str, answer: str) -> bool:
    """Whether an answer can be of the kind; an equation needs a relation sign."""
    return kind != "equation" or _RELATION.search(answer) is not None


def _listed(answer: str) -> str:
    text = _SIZES.sub("", _QUAD.sub(" ", answer))
    return _AND.sub(", ", _ASSIGNED.sub("", text.strip().strip("$").strip()).strip())


def _as_set(answer: str) -> str:
    text = _listed(answer)
    for opening, closing in (*_BRACES, ("(", ")"), ("{", "}")):
        if _encloses(text, opening, closing):
            text = text[len(opening) : -len(closing)]
            break
    return f"\\{{{text.strip()}\\}}" if text.strip() not in ("", "\\emptyset", "\\varnothing") else "\\emptyset"


def _as_tuple(answer: str) -> str:
    text = _listed(answer)
    for angle, parenthesis in _ANGLES.items():
        text = text.replace(angle, parenthesis)
    return text if _encloses(text, "(", ")") else f"({text})"


def _as_interval(answer: str) -> str:
    return _SIZES.sub("", _QUAD.sub(" ", answer)).replace("\\infin ", "\\infty ")


def _as_matrix(answer: str) -> str:
    text = _MATRIX.sub(lambda found: f"\\{found[1] or found[2]}{{pmatrix}}", _SIZES.sub("", answer)).strip()
    for opening, closing in (("[", "]"), ("(", ")")):
        if _encloses(text, opening, closing) and "\\begin" in text:
            text = text[1:-1].strip()
    return text


def _encloses(text: str, opening: str, closing: str) -> bool:
    """Whether the last bracket of a text closes its first."""
    if not (text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing)):
        return False
    depth = 0
    for found in re.finditer(f"{re.escape(opening)}|{re.escape(closing)}", text):
        depth += 1 if found[0] == opening else -1
        if depth == 0:
            return found.end() == len(text)
    return False


_FORMS: dict[str, Callable[[str], str]] = {
    "set": _as_set,
    "tuple": _as_tuple,
    "interval": _as_interval,
    "matrix": _as_matrix,
}
