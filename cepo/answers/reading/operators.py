"""Operators that only algebra evaluates: integrals, sums, limits, a sign that stands for two."""

from __future__ import annotations

import re

from cepo.answers.reading.tokens import FUNCTIONS, GREEK

_OPERATOR = re.compile(r"\\(?:i*int|oint|sum|prod|lim|pm|mp|gcd|max|min|det|partial)(?![a-zA-Z])|\\frac *\{ *d *\}")
_ALGEBRA = re.compile(
    rf"(?:\\(?:i*int|oint|sum|prod|lim|pm|mp|gcd|max|min|det|partial|frac|sqrt|binom|cdot|times|div|infty|to|limits"
    rf"|{'|'.join(sorted(FUNCTIONS | GREEK | {'pi'}))})(?![a-zA-Z])|(?<![a-zA-Z])[a-zA-Z]{{1,2}}(?![a-zA-Z])"
    r"|_ *\{ *[a-zA-Z] *= *[-\w]+ *\}|[-+*/^_!(){}|\[\], ]|\d+(?:\.\d+)?|\\left|\\right)+"
)
"""What math-verify reads wholly: no words, relations, primes or dots."""


def operator(text: str) -> str:
    """The operator of an expression that only algebra evaluates; empty if there is none, or an unknown part."""
    sign = _OPERATOR.search(text)
    return sign[0] if sign and _ALGEBRA.fullmatch(text) else ""
