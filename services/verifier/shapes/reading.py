"""Reads an answer into the structure that it states, wholly or not at all: what is not understood is a `Leaf`."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from cepo.answers.notation import normalise
from cepo.answers.reading.numerals import as_number
from services.verifier.shapes import intervals
from services.verifier.shapes.names import is_wordy, same_name
from services.verifier.shapes.relations import congruence, relation
from services.verifier.shapes.splitting import cut, elements, enclosed, tidy
from services.verifier.shapes.types import (
    DOTS,
    EMPTY,
    EVERYTHING,
    Assignment,
    Equation,
    Grid,
    Group,
    Leaf,
    Piece,
    Pieces,
    Ratio,
    Shape,
)

MAX_DEPTH = 8
"""Brackets within brackets; deeper ones are left as text."""
_STRUCTURE = re.compile(
    r"[,;:=<>()\[\]|\u2200-\u22ff\u2190-\u21ff\uff0c\u3001\uff08\uff1d\uff1a\u00b1\u27e8\u211d]|\.\.\.|\\[{]|\\l?brace"
    r"|\\(?:l?vert|langle|lbrack|begin|l?dots|cdots|pm|cup|cap|infty|infin|emptyset|varnothing|mathbb|setminus|R|in|ni|notin|leq?|geq?"
    r"|neq?|lt|gt|leqslant|geqslant|approx|equiv|p?b?mod|to|(?:[lL]eft)?[rR]ightarrow|implies|iff|mapsto|mid|subseteq|subset|sim|cong|propto|ll|gg|not|colon)(?![A-Za-z])"
    r"|(?<![A-Za-z])(?:and|or|to|mod|all)(?![A-Za-z])|\{.*,.*\}"
)
_CONDITION = re.compile(
    r"\b(?:if|when|whenever|for|otherwise|else|where|unless|except|but|not|neither|nor|none|is|are|was|maybe|either|between"
    r"|than|least|most|possibly|perhaps|with|without|because|since|so|therefore)\b"
)
_NOTE = re.compile(
    r"(?:\\text\{\s*)?\(\s*(?:(?:a )?(?:double|triple|repeated|simple)(?: root)?"
    r"|(?:with )?multiplicity (?:two|three|\d))\s*\)(?:\s*\})?"
)
_GRID = re.compile(
    r"(?P<factor>-?|[-\w\\{}/. ]*?)\\begin\s*\{(?P<name>(?:[bBp]|small)?matrix\*?|array)\}"
    r"(?:\s*\{[lcr| ]*\}|\s*\[[lcr]\])?(?P<body>.*)\\end\s*\{(?P=name)\}",
    re.DOTALL,
)
_ALIGNED = re.compile(r"\\begin\s*\{(aligned|align\*?|gathered|array|cases)\}(.*)\\end\s*\{\1\}", re.DOTALL)
_CLOCK = re.compile(r"\d{1,2}:[0-5]\d(?::[0-5]\d)?")
_POINT = re.compile(r"(?:[A-Z]|\\text\{\s*(?:the )?[Pp]oint\s*\}|\\(?:text|mathrm)\{[A-Z]\})\s*(?=\()")
_TRANSPOSED = re.compile(r"\s*\^\s*\{?\s*(?:T|\\top|\\mathrm\{T\}|\\intercal)\s*\}?$")
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])\s*")
_EMPTY = re.compile(r"\\emptyset|\\varnothing|\u2205|\\\{\s*\\\}|(?:\\text\{)?\s*(?:the )?empty set\s*\}?")
_STYLES = {"(": "round", "[": "square", "\\{": "set", "{": "set", "\\langle": "angle"}
_CLOSERS = {"(": ")", "[": "]", "\\{": "\\}", "{": "}", "\\langle": "\\rangle"}


@lru_cache(maxsize=2048)
def read(text: str) -> Shape:
    """The structure of an answer.

    Example:
        read("x = 5, y = 3")  # Assignment((("x", Leaf("5")), ("y", Leaf("3"))))
    """
    if not _STRUCTURE.search(text):
        return Leaf(text)
    shape = _ShapeReader().read(tidy(text))
    return replace(shape, text=text) if isinstance(shape, Leaf) else shape


def read_list(text: str) -> Shape:
    """The structure of an answer in which every comma separates elements: `5,120` is two."""
    return _ShapeReader().read(f"({tidy(text)})")


class _ShapeReader:
    """Reads nested structures down to MAX_DEPTH."""

    def __init__(self) -> None:
        self._depth = 0

    def read(self, text: str) -> Shape:
        self._depth += 1
        try:
            return self._shape(text.strip()) if self._depth <= MAX_DEPTH else Leaf(text)
        finally:
            self._depth -= 1

    def _shape(self, text: str) -> Shape:
        if text == DOTS.text or not _STRUCTURE.search(text):
            return Leaf(text)
        if _EMPTY.fullmatch(text):
            return EMPTY
        if intervals.is_everything(text):
            return EVERYTHING
        if _CLOCK.fullmatch(text):
            return Leaf(text)
        if _CONDITION.search(re.sub(r"\\[A-Za-z]+", " ", text)):
            return Leaf(text, is_clause=True)
        readers = (
            *(self._grid, self._congruence, self._several, self._relation),
            *(self._union, self._ratio, self._group, self._signs),
        )
        for reader in readers:
            if (shape := reader(text)) is not None:
                return shape
        return Leaf(text)

    def _grid(self, text: str) -> Shape | None:
        brackets = enclosed(text)
        inner = brackets[1] if brackets and brackets[0] in ("(", "[") else text
        grid = _GRID.fullmatch(inner)
        if grid and (grid["name"] != "array" or "=" not in grid["body"]):
            rows = [row for row in cut(grid["body"], r"\\\\(?:\[[^\]]*\])?")[0] if row and row != "\\hline"]
            factor = grid["factor"].strip()
            cells = [tuple(self.read(_times(factor, cell)) for cell in cut(row, "&")[0]) for row in rows]
            return Grid(tuple(cells)) if len({len(row) for row in cells}) == 1 else None
        if (aligned := _ALIGNED.fullmatch(inner)) and "=" in aligned[2]:
            lines = [line.replace("&", "").strip(" ,;") for line in cut(aligned[2], r"\\\\")[0]]
            return self.read("; ".join(line for line in lines if line))
        if "\\\\" in text and "=" in text and "\\begin" not in text:
            return self.read("; ".join(line for line in cut(text, r"\\\\")[0] if line))
        return None

    def _congruence(self, text: str) -> Shape | None:
        return congruence(text, self.read) if "mod" in text else None

    def _several(self, text: str) -> Shape | None:
        parts, separators = elements(text, bracketed=False)
        if not parts[-1] and separators:
            parts.pop()
        if len(parts) == 1 or not all(parts):
            return None
        if ";" in separators and "," in separators:
            lines = [self.read(line) for line in cut(text, ";")[0]]
            if all(isinstance(line, Assignment) for line in lines):
                return self._listed("list", lines)
        if separators[-1] in (",", ";") and not {"and", "or"}.isdisjoint(separators):
            return Leaf(text, is_clause=True)  # `1, 2 or 3, 4` leaves a choice of lists
        items = [self.read(_NOTE.sub("", part)) for part in parts]
        return self._combined(items, separators) or self._listed("set" if "or" in separators else "list", items)

    def _combined(self, items: list[Shape], separators: list[str]) -> Shape | None:
        """What several relations say together: an interval, values by name, or the values of one name."""
        first = items[0]
        if any(isinstance(item, Pieces) and item.variable for item in items):
            return _bounds(items, separators)
        if not isinstance(first, Equation) or len(first.sides) != 2 or len(first.names) != 1:
            return None
        if all(not isinstance(item, Equation | Pieces | Assignment) or item == first for item in items[1:]):
            return self._listed("set", [first.values[0], *items[1:]])  # `x = 1, 2`
        named = [
            (item.names[0], item.values[0]) for item in items if isinstance(item, Equation) and len(item.names) == 1
        ]
        if len(named) < len(items) or any(len(item.sides) != 2 for item in items if isinstance(item, Equation)):
            return None
        if all(same_name(name, first.names[0]) for name, _ in named):
            return Equation("", ("",), (first.names[0],), (self._listed("set", [value for _, value in named]),))
        if len({re.sub(r"\s", "", name) for name, _ in named}) == len(named):
            return Assignment(tuple(named))
        return None

    def _listed(self, style: str, items: list[Shape]) -> Group:
        flat: list[Shape] = []
        for item in items:  # `1 \pm \sqrt{2}` is two elements of a list or a set
            spread = isinstance(item, Group) and item.style == "signs" and style in ("list", "set")
            flat += item.items if spread and isinstance(item, Group) else (item,)
        return Group(style, tuple(flat))

    def _relation(self, text: str) -> Shape | None:
        return relation(text, self.read)

    def _union(self, text: str) -> Shape | None:
        """A union of intervals, or sets joined by one operation, whose order does not matter."""
        if pieces := intervals.union(text):
            return pieces
        for operation in ("\\cup", "\\cap"):
            parts, _ = cut(text, rf"{re.escape(operation)}(?![A-Za-z])")
            if len(parts) > 1 and all(parts):
                return Group(operation, tuple(self.read(part) for part in parts))
        return None

    def _ratio(self, text: str) -> Shape | None:
        parts, separators = cut(text, r":|(?<=[\d}])\s*\\text\{ *to *\}\s*(?=\d)|(?<=\d)\s+to\s+(?=\d)")
        if not separators or not all(parts) or (is_wordy(text.replace(" to ", " ")) and "\\text" not in text):
            return None
        return Ratio(tuple(self.read(part) for part in parts))

    def _group(self, text: str) -> Shape | None:
        text = _TRANSPOSED.sub("", text) if "^" in text and "," in text else text
        point = _POINT.match(text)
        brackets = enclosed(text[point.end() :] if point else text)
        if brackets is None:
            return None
        opening, content, closing = brackets
        if opening == "\\{" and (described := self._described(content)):
            return described
        parts, _ = elements(content, bracketed=True)
        if not all(parts):
            return None
        if closing != _CLOSERS.get(opening):
            return intervals.bracketed(opening, content, closing)
        if len(parts) > 1:
            return self._listed(_STYLES[opening], [self.read(_NOTE.sub("", part)) for part in parts])
        if opening == "\\{" or (opening in ("(", "[") and enclosed(content) and "," in content):
            return self._listed(_STYLES[opening], [self.read(content)])
        return self.read(content) if opening in ("(", "{") and not point else None

    def _described(self, content: str) -> Shape | None:
        """`\\{x \\mid x > 2\\}`, or None for a set that lists its elements."""
        parts, _ = cut(content, r"\\mid(?![A-Za-z])|\||:")
        shape = self.read(parts[1]) if len(parts) == 2 and all(parts) else None
        return shape if isinstance(shape, Pieces) else None

    def _signs(self, text: str) -> Shape | None:
        if len(_PLUS_MINUS.findall(text)) != 1 or "\\mp" in text:
            return None
        above = re.sub(r"(^|[({=])\s*\\pm(?![A-Za-z])\s*", r"\1", text)
        return Group("signs", (Leaf(_PLUS_MINUS.sub("+", above)), Leaf(_PLUS_MINUS.sub("-", text))))


def _bounds(items: list[Shape], separators: list[str]) -> Pieces | None:
    """Several inequalities in one unknown: their union after `or`, otherwise what they have in common, if anything."""
    items = [item for item in items if item != EVERYTHING]
    shapes = [shape for item in items if (shape := _bound(item)) is not None]
    if len(shapes) < len(items) or any(not same_name(shape.variable, shapes[0].variable) for shape in shapes):
        return None
    union = Pieces(tuple(piece for shape in shapes for piece in shape.pieces), shapes[0].variable)
    if any("or" in separator or "vee" in separator for separator in separators):
        return union
    common = intervals.intersection(shapes)
    return common if common is None or common.pieces else union


def _bound(item: Shape) -> Pieces | None:
    """An inequality, or `x = 3` as the point 3."""
    if isinstance(item, Equation) and len(item.sides) == 2 and len(item.names) == 1:
        value = item.values[0]
        return Pieces((Piece(value.text, value.text, True, True),), item.names[0]) if isinstance(value, Leaf) else None
    return item if isinstance(item, Pieces) and item.variable else None


def _times(factor: str, cell: str) -> str:
    """An element of a matrix with a factor before it."""
    if not factor:
        return cell
    one, other = as_number(normalise(f"{factor}1" if factor == "-" else factor)), as_number(normalise(cell))
    return f"{factor} ({cell})" if one is None or other is None else str(one * other)
