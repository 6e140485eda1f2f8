r"""Parses one mathematical expression, in LaTeX or plain text, into a tree: wholly, or not at all.

The grammar has sums, products with and without a sign, mixed numbers, powers, roots, fractions, factorials, absolute
values, functions with and without parentheses, degrees, and symbols with subscripts, accents and primes. Relations,
sets, lists, integrals and words are not in it.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from cepo.answers.reading.cursor import Cursor, Unreadable
from cepo.answers.reading.nodes import Expression
from cepo.answers.reading.tokens import END, Lexeme, tokens

MAX_TOKENS = 300
"""A longer expression is compared as text."""
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "|": "|"}
_ATOMS = frozenset({"number", "symbol", "function", "accent", "command", "(", "[", "{", "|"})
_APPLIED = frozenset({"f", "g", "h", "O", "P"})
"""Letters that apply to parentheses with a single number or letter: `f(x)` is no product."""
_AXES = frozenset("ijk")
"""Unit vectors: `\\hat{i}` is `\\mathbf{i}`."""
_INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot"}


@lru_cache(maxsize=8192)
def expression(text: str) -> Expression | None:
    r"""The tree of an expression; None if any part of the text does not belong to one.

    Example:
        expression("\\sin x")  # Expression("sin", (Expression("symbol", name="x"),))
    """
    read = tokens(text)
    if read is None or not 1 < len(read) <= MAX_TOKENS:
        return None
    try:
        return _Parser(read).whole()
    except Unreadable:
        return None


class _Parser(Cursor):
    """Recursive descent over the tokens."""

    def whole(self) -> Expression:
        node = self._divided(self._sum())
        if self._next is not END:
            raise Unreadable
        return node

    def _sum(self) -> Expression:
        node = self._signed()
        while self._next.kind in ("+", "-"):
            operator = self._take().kind
            term = self._signed()
            node = Expression("+", (node, term if operator == "+" else Expression("-", (term,))))
        return node

    def _signed(self) -> Expression:
        negative = False
        for _ in range(3):  # -(-3), but no longer row of signs
            if self._next.kind not in ("+", "-"):
                break
            negative ^= self._take().kind == "-"
        node = self._product()
        return Expression("-", (node,)) if negative else node

    def _product(self) -> Expression:
        node = self._power()
        while True:
            kind = self._next.kind
            if kind in ("*", "/"):
                self._take()
                factor = self._signed_factor()
                node = Expression(kind, (node, factor))
            elif self._starts_factor():
                node = self._beside(node)
            else:
                return node

    def _signed_factor(self) -> Expression:
        if self._next.kind in ("+", "-"):
            negative = self._take().kind == "-"
            factor = self._power()
            return Expression("-", (factor,)) if negative else factor
        return self._power()

    def _starts_factor(self) -> bool:
        kind = self._next.kind
        if kind == "|":
            return self._bars == 0
        return kind in _ATOMS and self._next.text not in ("over", "choose", "rfloor", "rceil")

    def _beside(self, node: Expression) -> Expression:
        """A product without a sign, or a mixed number; a number may not follow a factor."""
        token = self._next
        whole = node.op == "number" and "." not in node.name
        if token.kind == "command" and token.text == "frac" and whole:
            factor = self._power()
            if _is_proper(factor):
                return Expression("+", (node, factor), name="mixed")
            return Expression("*", (node, factor))
        if token.kind == "number":
            if not (whole and token.spaced and self._tokens[self._position + 1].kind == "/"):
                raise Unreadable
            above = self._power()
            self._expect("/")
            fraction = Expression("/", (above, self._power()))
            if not _is_proper(fraction):
                raise Unreadable
            return Expression("+", (node, fraction), name="mixed")
        return Expression("*", (node, self._power()))

    def _power(self) -> Expression:
        self._deeper()
        node = self._raised(self._postfixed(self._atom()))
        self._depth -= 1
        return node

    def _raised(self, node: Expression) -> Expression:
        if self._next.kind != "^":
            return node
        if node.op == "symbol" and node.name in _APPLIED - {"P"} and self._inverse_follows():
            raise Unreadable  # f^{-1}(x)
        self._take()
        return self._postfixed(Expression("^", (node, self._exponent())))

    def _postfixed(self, node: Expression) -> Expression:
        while self._next.kind in ("!", "'", "\u00b0"):
            kind = self._take().kind
            node = _primed(node, 1) if kind == "'" else Expression("!" if kind == "!" else "degree", (node,))
        return node

    def _exponent(self) -> Expression:
        if self._next.kind in ("+", "-"):
            negative = self._take().kind == "-"
            node = self._power()
            return Expression("-", (node,)) if negative else node
        return self._power()  # right-associative

    def _argument(self) -> Expression:
        r"""A group in braces, or one token: `\frac12` is one half."""
        token = self._next
        if token.kind == "{":
            return self._group()
        if token.kind == "number" and len(token.text) > 1:
            if not token.text.isdigit():
                raise Unreadable
            rest = token.text[1:]
            self._tokens[self._position] = Lexeme("number", rest, Fraction(int(rest)))
            return Expression("number", name=token.text[0], value=Fraction(int(token.text[0])))
        return self._atom()

    def _group(self) -> Expression:
        opening = self._take().kind
        bars, self._bars = self._bars, 1 if opening == "|" else 0
        node = self._sum()
        if opening == "{":
            node = self._divided(node)
        self._expect(_CLOSING[opening])
        self._bars = bars
        return Expression("abs", (node,)) if opening == "|" else node

    def _divided(self, node: Expression) -> Expression:
        r"""`a \over b` and `a \choose b`, of which the node is the first part."""
        if self._next.text not in ("over", "choose"):
            return node
        operator = self._take().text
        return Expression("/" if operator == "over" else "binom", (node, self._sum()))

    def _atom(self) -> Expression:
        self._deeper()
        node = self._read_atom()
        self._depth -= 1
        return node

    def _read_atom(self) -> Expression:
        token = self._next
        if token.kind in ("(", "[", "{", "|"):
            return self._group()
        self._take()
        if token.kind == "number":
            if self._next.kind == "_":
                raise Unreadable  # a base
            return Expression("number", name=token.text, value=token.value)
        if token.kind == "symbol":
            return self._symbol(token.text)
        if token.kind == "accent":
            inner = self._raw_group()
            name = inner if token.text in ("vec", "hat") and inner in _AXES else f"{token.text}{{{inner}}}"
            return Expression("symbol", name=name + self._subscript())
        if token.kind == "function":
            return self._function(token.text)
        if token.kind == "command":
            return self._command(token.text)
        raise Unreadable

    def _symbol(self, letter: str) -> Expression:
        name = letter + self._subscript()
        while self._next.kind == "'":
            self._take()
            name += "'"
        if name.rstrip("'") in _APPLIED and self._next.kind == "(" and self._applies(name):
            return Expression("apply", (self._group(),), name=name)
        return Expression("symbol", name=name)

    def _applies(self, name: str) -> bool:
        following = self._tokens[self._position + 1 : self._position + 3]
        single = len(following) == 2 and following[0].kind in ("number", "symbol") and following[1].kind == ")"
        return single or name.rstrip("'") in ("f", "O")

    def _command(self, name: str) -> Expression:
        if name in ("frac", "binom"):
            above = self._argument()
            return Expression("/" if name == "frac" else "binom", (above, self._argument()))
        if name in ("lfloor", "lceil"):
            node = self._sum()
            if self._take().text != f"r{name[1:]}":
                raise Unreadable
            return Expression("floor" if name == "lfloor" else "ceil", (node,))
        if name == "emptyset":
            return Expression("symbol", name="emptyset")
        raise Unreadable

    def _function(self, name: str) -> Expression:
        if name == "sqrt":
            return self._root()
        base: Expression | None = None
        power: Expression | None = None
        while self._next.kind in ("_", "^"):
            if self._take().kind == "_":
                base = self._argument()
            else:
                power = self._argument() if self._next.kind != "-" else self._exponent()
        if base is not None and name != "log":
            raise Unreadable
        if power is not None and _is_minus_one(power) and name in _INVERSES:
            name, power = _INVERSES[name], None
        argument = self._function_argument()
        node = Expression(name, (argument,) if base is None else (argument, base))
        return node if power is None else Expression("^", (node, power))

    def _function_argument(self) -> Expression:
        """What a function applies to: a group, or the factors up to a sign, a slash or another function."""
        if self._next.kind in ("(", "[", "{", "|"):
            if self._next.kind == "|":
                self._bars = 0
            return self._postfixed(self._group())
        if self._next.kind == "-":
            self._take()
            return Expression("-", (self._power(),))
        node = self._power()
        while self._starts_factor() and self._next.kind not in ("function", "("):
            node = self._beside(node)
        return node

    def _root(self) -> Expression:
        degree: Expression | None = None
        if self._next.kind == "[":
            degree = self._group()
        whole = self._next.kind in ("(", "number")  # \sqrt12 is the root of 12
        radicand = self._atom() if whole else self._argument()
        return Expression("root", (radicand,) if degree is None else (radicand, degree))


def _is_proper(node: Expression) -> bool:
    """Whether a node is a fraction of two positive integers below 1."""
    if node.op != "/" or any(part.op != "number" or not part.name.isdigit() for part in node.parts):
        return False
    return 0 < node.parts[0].value < node.parts[1].value


def _is_minus_one(node: Expression) -> bool:
    return node.op == "-" and node.parts[0].op == "number" and node.parts[0].value == 1


def _primed(node: Expression, count: int) -> Expression:
    if node.op not in ("symbol", "apply"):
        raise Unreadable
    return Expression(node.op, node.parts, name=node.name + "'" * count)
