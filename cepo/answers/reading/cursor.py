"""A cursor over the tokens of an expression."""

from __future__ import annotations

from cepo.answers.reading.tokens import END, Lexeme

MAX_DEPTH = 60
"""Deeper nesting is no answer."""


class Unreadable(Exception):
    """The text is not an expression of the grammar."""


class Cursor:
    """Where a parser stands in its tokens, and how deep in groups."""

    def __init__(self, read: list[Lexeme]) -> None:
        self._tokens = read
        self._position = 0
        self._depth = 0
        self._bars = 0

    @property
    def _next(self) -> Lexeme:
        return self._tokens[self._position]

    def _take(self) -> Lexeme:
        token = self._tokens[self._position]
        if token is not END:
            self._position += 1
        return token

    def _expect(self, kind: str) -> None:
        if self._take().kind != kind:
            raise Unreadable

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable

    def _subscript(self) -> str:
        if self._next.kind != "_":
            return ""
        self._take()
        if self._next.kind == "{":
            return f"_{self._raw_group()}"
        token = self._take()
        if token.kind not in ("number", "symbol"):
            raise Unreadable
        return f"_{token.text}"

    def _raw_group(self) -> str:
        """The text of a group in braces, or of one token, without blanks."""
        if self._next.kind != "{":
            token = self._take()
            if token.kind not in ("number", "symbol"):
                raise Unreadable
            return token.text
        depth = 0
        pieces: list[str] = []
        while True:
            token = self._take()
            if token is END:
                raise Unreadable
            depth += {"{": 1, "}": -1}.get(token.kind, 0)
            if depth == 0:
                return "".join(pieces[1:])
            pieces.append(token.text)

    def _inverse_follows(self) -> bool:
        ahead = [token.text for token in self._tokens[self._position + 1 : self._position + 6]]
        return ahead == ["{", "-", "1", "}", "("]
