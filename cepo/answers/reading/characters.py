r"""The one table from Unicode to the ASCII and LaTeX that the readers know.

Full-width forms, decimal digits of all scripts, superscripts, vulgar fractions, Greek letters and operators are
rewritten. Letters that only look like Latin ones (Cyrillic, mathematical bold) stay as they are: they are no answer
to a multiple-choice question.
"""

from __future__ import annotations

import re
import unicodedata

from cepo.answers.reading.lists import words

_SUPERSCRIPTS = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b\u207d\u207e\u207f", "0123456789+-()n"
)
_SUBSCRIPTS = str.maketrans(
    "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089\u208a\u208b\u2099", "0123456789+-n"
)
_RAISED = re.compile(f"[{''.join(map(chr, _SUPERSCRIPTS))}]+")
_LOWERED = re.compile(f"[{''.join(map(chr, _SUBSCRIPTS))}]+")
_GREEK = words(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma "
    "sigma tau upsilon phi chi psi omega"
)
_TABLE = {
    **{chr(0x3B1 + i): f"\\{name} " for i, name in enumerate(_GREEK)},
    **{chr(0x391 + _GREEK.index(name)): f"\\{name.title()} " for name in _GREEK if name in (
        "gamma", "delta", "theta", "lambda", "xi", "pi", "sigma", "phi", "psi", "omega")},
    "\u00b5": "\\mu ", "\u2126": "\\Omega ", "\u03d5": "\\phi ", "\u03f5": "\\epsilon ",
    "\u2212": "-", "\u2013": "-", "\u2010": "-", "\u2011": "-", "\u2044": "/", "\u2215": "/", "\u00f7": "\\div ",
    "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ", "\u2219": "\\cdot ", "\u2217": "*",
    "\u221e": "\\infty ", "\u2264": "\\le ", "\u2265": "\\ge ", "\u2a7d": "\\le ", "\u2a7e": "\\ge ",
    "\u2260": "\\ne ", "\u2248": "\\approx ", "\u2261": "\\equiv ", "\u00b1": "\\pm ", "\u2213": "\\mp ",
    "\u2208": "\\in ", "\u2209": "\\notin ", "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2205": "\\emptyset ",
    "\u2286": "\\subseteq ", "\u2282": "\\subset ", "\u2192": "\\to ", "\u21d2": "\\Rightarrow ",
    "\u22a5": "\\perp ", "\u2225": "\\parallel ", "\u2220": "\\angle ", "\u25b3": "\\triangle ",
    "\u2236": ":", "\u2026": "\\ldots ", "\u22ef": "\\cdots ", "\u27e8": "\\langle ", "\u27e9": "\\rangle ",
    "\u2211": "\\sum ", "\u222b": "\\int ", "\u2202": "\\partial ", "\u211d": "\\mathbb{R}", "\u2124": "\\mathbb{Z}",
    "\u2115": "\\mathbb{N}", "\u211a": "\\mathbb{Q}", "\u2032": "'", "\u2033": "''", "\u2019": "'", "\u2018": "'",
    "\u3002": ".", "\u3001": ",", "\u066b": ".", "\u066c": ",", "\u060c": ",", "\u301c": "~", "\u201c": '"',
    "\u201d": '"', "\u221b": "\\sqrt[3]", "\u00ba": "\u00b0", "\u2103": "\u00b0C", "\u2109": "\u00b0F",
}  # fmt: skip
_ROOT = re.compile(r"(\u221a|\\sqrt\[3\](?=\d)|\u221c) *(\d+(?:\.\d+)?|[A-Za-z])?")


def to_ascii(text: str) -> str:
    r"""A text with the Unicode of numbers and operators written in ASCII and LaTeX, and no invisible characters.

    Example:
        to_ascii("5\u00d710\u00b3")  # "5\\times 10^{3}"
    """
    if text.isascii() and text.isprintable():
        return text
    text = unicodedata.normalize("NFC", text)
    text = _RAISED.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{run[0].translate(_SUBSCRIPTS)}}}", text)
    text = "".join(map(_character, text))
    return _ROOT.sub(_root, text)


def _root(root: re.Match[str]) -> str:
    command = {"\u221a": "\\sqrt", "\u221c": "\\sqrt[4]"}.get(root[1], root[1])
    return f"{command}{{{root[2]}}}" if root[2] else command


def _character(character: str) -> str:
    if character.isascii() and character.isprintable():
        return character
    if (rewritten := _TABLE.get(character)) is not None:
        return rewritten
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    if character.isspace():
        return " "
    if "\uff01" <= character <= "\uffee" or "\ufb00" <= character <= "\ufb06":  # full-width forms and ligatures
        wide = unicodedata.normalize("NFKC", character)
        return _TABLE.get(wide, wide)
    if "VULGAR FRACTION" in unicodedata.name(character, ""):
        above, _, below = unicodedata.normalize("NFKC", character).partition("\u2044")
        return f"\\frac{{{above}}}{{{below}}}" if above and below else character
    return "" if unicodedata.category(character).startswith("C") else character
