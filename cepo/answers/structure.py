r"""The outer structure of an answer in LaTeX: its numbers, its brackets, its elements and its relation signs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from cepo.answers.notation import as_number, normalise

NUMBER = re.compile(r"(?<![_\d])(?<!_\{)\d+", re.ASCII)
"""A run of digits that is no subscript."""
RELATION = re.compile(
    r"[=<>:\u2264\u2265\u2260\u2208]|\\(?:leq?|geq?|neq?|lt|gt|in|equiv|approx|sim|mid|to)(?![a-zA-Z])"
)
BOUND = re.compile(r"\\(?:leq|le|geq|ge)(?![a-zA-Z])|[<>]")
_SIZES = re.compile(r"\\(?:left|right)(?![a-zA-Z])\s*")
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|.", re.DOTALL)
_PAIRS = {"(": ")", "[": "]", "\\{": "\\}", "\\langle": "\\rangle"}
_OPENING = {*_PAIRS, "{"}
_CLOSING = {*_PAIRS.values(), "}"}
_TURNED = {"(": "[", "[": "(", ")": "]", "]": ")"}
_INSENSITIVE = re.compile(
    r"\\?(?:lfloor|lceil|gcd|lcm|min|max|mod|sin|cos|tan|cot|sec|csc)(?![a-zA-Z])"
    r"|(?<![\d.])[01]\s*\^|\^\s*\{?0(?![\d.])|(?<![\d.])0\s*[a-zA-Z\\(/]|\\[dtc]?frac\s*\{?0(?!\d)"
)


class Bracketed(NamedTuple):
    """Elements within one pair of brackets, which may be half-open."""

    opening: str
    items: tuple[str, ...]
    closing: str

    @property
    def is_set(self) -> bool:
        return self.opening == "\\{"

    def of(self, items: Sequence[str], *, turned: int | None = None) -> str:
        """Other elements in the same brackets; the first (0) or last (-1) bracket may turn from open to closed."""
        ends = [self.opening, self.closing]
        if turned is not None:
            ends[turned] = _TURNED.get(ends[turned], ends[turned])
        return f"{ends[0]}{', '.join(items)}{ends[1]}"


def elements(text: str) -> list[str]:
    """The parts of an answer between its outer commas; a number with thousands separators is one part."""
    if as_number(normalise(text)) is not None:
        return [text.strip()]
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        depth += (token in _OPENING) - (token in _CLOSING)
        if token in (",", ";") and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts if part.strip()]


def bracketed(text: str) -> Bracketed | None:
    """The brackets that enclose an answer and the elements in them; None if no single pair encloses it."""
    text = _SIZES.sub("", text).strip()
    tokens = _TOKEN.findall(text)
    if len(tokens) < 3 or tokens[0] not in _PAIRS or tokens[-1] not in _CLOSING - {"}"}:
        return None
    depth = 0
    for at, token in enumerate(tokens):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth == 0 and at < len(tokens) - 1:
            return None
    return Bracketed(tokens[0], tuple(elements("".join(tokens[1:-1]))), tokens[-1])


def is_unbounded(bound: str) -> bool:
    """Whether a bound of an interval is infinite."""
    return "\\inf" in bound or "\u221e" in bound


def numbers_matter(text: str) -> bool:
    """Whether another number anywhere in an expression gives it another value, as far as its signs tell."""
    return _INSENSITIVE.search(text) is None
