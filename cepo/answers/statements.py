"""Finds answers that a response states in words, without a mark: `So the answer is (B).`"""

from __future__ import annotations

import re

from cepo.answers.notation import normalise

_STATED = re.compile(r"\b(?:answer|option|choice)(?: is| would be| must be|:)[ :*]*([^\n]*)", re.IGNORECASE)
_LETTER = re.compile(r"(?<![^\W_])\(?([A-Z])(?=[).:,]|\s*$)(?![^\W_])")
_TRUTH = re.compile(r"(?<![^\W_])(yes|no|true|false)(?![^\W_])", re.IGNORECASE)


def stated(response: str, kind: str) -> str | None:
    """The answer of a response without a mark: the text after its last `answer is`, or its last line without one."""
    lines = [line.strip() for line in response.split("\n") if line.strip()]
    found = _STATED.findall(response)
    text = (found[-1] if found else lines[-1] if lines else "").strip().strip("*").strip()
    pattern = {"choice": _LETTER, "yesno": _TRUTH}.get(kind)
    if pattern is not None and (hits := pattern.findall(text)):
        return hits[0] if found else hits[-1]
    return text if normalise(text) else None
