r"""Splits mathematics, in LaTeX or plain text, into the tokens that `expressions` parses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from cepo.answers.reading.lists import words
from cepo.answers.reading.numerals import GROUPED, REPEATING, as_number

FUNCTIONS = frozenset(
    words("sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh ln log lg exp sqrt abs floor ceil cbrt")
)
"""Functions of one argument, by the names that LaTeX and programming languages give them."""
_ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "cosec": "csc", "arcsec": "", "sgn": "", "tg": "tan"}
CONSTANTS = {"pi": "pi", "infty": "infinity", "infinity": "infinity", "oo": "infinity", "inf": "infinity"}
ACCENTS = frozenset(
    words("vec hat bar tilde overline widehat widetilde overrightarrow dot ddot acute check mathbb mathbin")
)
"""Commands that, with their argument, name a symbol."""
GREEK = frozenset(
    words(
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho "
        "sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi "
        "Omega ell hbar imath jmath"
    )
)
_STRUCTURE = {"cdot": "*", "times": "*", "ast": "*", "div": "/", "lvert": "|", "rvert": "|", "vert": "|"}
_PLAIN = frozenset(words("frac binom over choose lfloor rfloor lceil rceil emptyset sqrt"))
_NO_PRODUCTS = frozenset(
    words(
        "and or if is to of for by no not yes mod gcd lcm max min div dx dy dt dz km cm mm kg in ft at "
        "as it be we the per any all"
    )
)
"""Short words that are no products of variables."""
_TOKEN = re.compile(
    rf"(?P<blank>\s+)|(?P<number>{REPEATING}|(?:{GROUPED.replace(' ', '(?!)')}|\d+)(?:\.\d+|\.(?![\d.]))?|\.\d+)"
    r"|\\(?P<command>[a-zA-Z]+)|(?P<letters>[a-zA-Z]+)|(?P<operator>\*\*|[-+*/^_!|()\[\]{}'\u00b0]|\\[{}|])"
)


@dataclass(frozen=True, slots=True)
class Lexeme:
    """One token of an expression."""

    kind: str
    """`number`, `symbol`, `function`, `accent`, `command` or the operator itself; empty at the end."""
    text: str = ""
    value: Fraction = Fraction(0)
    spaced: bool = False
    """Whether a blank precedes it."""


END = Lexeme("")
"""Ends every list of tokens."""


def tokens(text: str) -> list[Lexeme] | None:
    r"""The tokens of an expression; None if a part of it is no mathematics, or a word.

    Example:
        [token.kind for token in tokens("2\\sin x")]  # ["number", "function", "symbol", ""]
    """
    out: list[Lexeme] = []
    position, spaced = 0, False
    while position < len(text):
        piece = _TOKEN.match(text, position)
        if piece is None:
            return None
        position = piece.end()
        if piece.lastgroup == "blank":
            spaced = True
            continue
        pieces = _pieces(piece, spaced)
        if pieces is None:
            return None
        out += pieces
        spaced = False
    return [*out, END]


def _pieces(piece: re.Match[str], spaced: bool) -> list[Lexeme] | None:
    text = piece[0]
    if piece.lastgroup == "number":
        value = as_number(text)
        return None if value is None else [Lexeme("number", text, value, spaced)]
    if piece.lastgroup == "operator":
        return [Lexeme({"**": "^", "\\|": "|"}.get(text, text), text, spaced=spaced)]
    if piece.lastgroup == "command":
        return _command(piece["command"], spaced)
    return _letters(text, spaced)


def _command(name: str, spaced: bool) -> list[Lexeme] | None:
    if name in _STRUCTURE:
        return [Lexeme(_STRUCTURE[name], name, spaced=spaced)]
    if name in _PLAIN:
        return [Lexeme("function" if name == "sqrt" else "command", name, spaced=spaced)]
    if name in ACCENTS:
        return [Lexeme("accent", name, spaced=spaced)]
    if name in CONSTANTS or name in GREEK:
        plain = {"varepsilon": "epsilon", "varphi": "phi", "vartheta": "theta", "imath": "i", "jmath": "j"}
        return [Lexeme("symbol", CONSTANTS.get(name) or plain.get(name) or name, spaced=spaced)]
    return _function(name, spaced)


def _function(name: str, spaced: bool) -> list[Lexeme] | None:
    name = _ALIASES.get(name, name)
    return [Lexeme("function", name, spaced=spaced)] if name in FUNCTIONS else None


def _letters(run: str, spaced: bool) -> list[Lexeme] | None:
    """A run of letters: a function, a constant, or a product of at most three variables; None for a word."""
    if len(run) > 1 and (run in CONSTANTS or run in GREEK):
        return [Lexeme("symbol", CONSTANTS.get(run, run), spaced=spaced)]
    if len(run) > 1 and (known := _function(run, spaced)):
        return known
    for size in (4, 3, 2):  # sinx, lnx, pir
        name = run[:size]
        if len(run) == size + 1 and (name in FUNCTIONS or name == "pi"):
            head = Lexeme("symbol" if name == "pi" else "function", name, spaced=spaced)
            return [head, Lexeme("symbol", run[size:])]
    if len(run) > 3 or run in _NO_PRODUCTS:
        return None
    return [Lexeme("symbol", letter, spaced=spaced and not i) for i, letter in enumerate(run)]
