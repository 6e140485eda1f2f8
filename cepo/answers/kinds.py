"""Kinds of answers: how two answers are compared. The user names the kind, or it is inferred from the reference.

A kind is written `name [option]...`: `number tolerance=1%`, `set digits=3`, `math anywhere`, or `anywhere` alone.
`OPTIONS` lists the options; the policies among them settle what careful readers judge differently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Self

from cepo.answers.choices import chosen, looks_like_choice
from cepo.answers.extract import reference_of, shown
from cepo.answers.notation import is_words, normalise, respelt, unstarred
from cepo.answers.quantities import quantity
from cepo.errors import UserError

KINDS = {
    "math": "a value or a structure of values, compared by the form of the reference",
    "number": "a number; units, separators, percentages, powers of ten",
    "set": "order and repetition do not matter; braces are optional",
    "interval": "or a union of them; inequalities count as the interval they describe",
    "tuple": "order matters; parentheses are optional",
    "matrix": "any matrix environment",
    "equation": "an equation or inequality; the bare right-hand side is not enough",
    "text": "the same words, whatever their case and punctuation",
    "choice": "a letter, several, a letter with its option, or the option's text",
    "yesno": "yes or no, true or false",
}
"""The ways to compare answers, by name."""
WORDINGS = ("text", "choice", "yesno")
"""Kinds that are decided by words alone, without algebra."""
OPTIONS = {
    "anywhere": "a response may state its answer without a mark",
    "digits=N": "decimals that are compared if numbers are not exact",
    "tolerance=X": "the largest difference of numbers that counts as equal, or `X%` of the reference (number only)",
    "unevaluated": "an expression that still has to be evaluated counts as its value: `123*456` for `56088`",
    "convert": "units of one dimension are converted: `500 cm` for `5 m`",
    "comma=decimal": "a comma separates decimals: `1,5` is 1.5, and `1.234,5` is 1234.5",
    "percent=fraction": "a percentage is a fraction alone: `50%` is 0.5, not 50",
    "case": "capital letters count in words: `Paris` differs from `paris`",
    "articles": "a leading article counts in words: `the Nile` differs from `Nile`",
}
"""What may follow the name of a kind; none is on by default."""
DIGITS = 6
"""Decimals that are compared if numbers are not exact; math-verify's default."""
TRUTHS = {"yes": True, "true": True, "no": False, "false": False}
_FLAGS = {
    "anywhere": "anywhere", "unevaluated": "unevaluated", "convert": "convert", "comma=decimal": "decimal_comma",
    "percent=fraction": "percent_fraction", "case": "case", "articles": "articles",
}  # fmt: skip
"""The field of `Kind` that an option without a number sets."""
ARTICLES = ("the", "a", "an")
_TRUTH = re.compile(
    r"\W*(?:(?:it|that|this|the (?:statement|claim|answer|assertion)) is (not )?)?(yes|no|true|false)"
    r"(?=[.,;:!)]|$| because\b| since\b)(.*)",
    re.DOTALL,
)
_OTHER_TRUTH = re.compile(
    r"(?:(not|never|n't) (?:\w+ )?)?\b(yes|no|true|false)(?=\s*(?:[.,;:!?)]|$|otherwise\b|if\b|when\b))"
)
_HYPHEN = re.compile(
    r"(?<=[^\W\d_])[-/](?=[^\W\d_]{3})|(?<=[^\W\d_]{3})[-/](?=[^\W\d_])|(?<=[^\W\d_]{2}) - (?=[^\W\d_]{2})"
)
_PARTS = re.compile(r"\w+(?:[.,](?=\d)\w+)*|[-+#/<>=%&*@^|~]")
_TOLERANCE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?(?:e-?\d{1,2})?)(%?)")


@dataclass(frozen=True)
class Kind:
    """How an answer is compared with its reference."""

    name: str = ""
    """One of KINDS; empty means that it is inferred."""
    anywhere: bool = False
    """Whether a response may state its answer without a mark."""
    digits: int = DIGITS
    tolerance: Fraction = Fraction(0)
    """Largest difference between numbers that count as equal; 0 means that `digits` decides."""
    relative: bool = False
    """Whether the tolerance is a share of the reference."""
    unevaluated: bool = False
    """Whether an expression that still has to be evaluated counts as its value."""
    convert: bool = False
    """Whether units of one dimension are converted."""
    decimal_comma: bool = False
    """Whether a comma separates decimals; otherwise it separates thousands or list items."""
    percent_fraction: bool = False
    """Whether `50%` is 0.5 alone; otherwise it is 50 or 0.5."""
    case: bool = False
    """Whether capital letters count in words."""
    articles: bool = False
    """Whether a leading article counts in words."""

    def margin(self, reference: Fraction) -> Fraction:
        """The largest difference that counts as equal."""
        return self.tolerance * abs(reference) if self.relative else self.tolerance


ANY = Kind()
"""A kind without options."""


def parse_kind(text: str) -> Kind:
    """Parses a kind, for example `number tolerance=1%`.

    Raises:
        UserError: the kind or an option is unknown; lists the valid ones.
    """
    name, *options = text.split() or [""]
    if name and name not in KINDS:
        name, options = "", [name, *options]
    values: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        if option in _FLAGS:
            values[_FLAGS[option]] = True
        elif key == "digits" and value in map(str, range(16)):
            values["digits"] = int(value)
        elif key == "tolerance" and (margin := _TOLERANCE.fullmatch(value)) and name == "number":
            values["relative"] = bool(margin[2])
            values["tolerance"] = Fraction(margin[1]) / (100 if margin[2] else 1)
        else:
            raise UserError(
                f"answer kind {shown(text)} is unknown; leave it empty or use one of {', '.join(KINDS)}, "
                f"each with the options {', '.join(OPTIONS)} (tolerance: number only)"
            )
    return Kind(name, **values)


def kind_of(kind: str, reference: str) -> Kind:
    """The kind as which answers are compared with a reference.

    Args:
        kind: as users write it.
        reference: the answer that `reference_of` returns.

    Raises:
        UserError: the kind is unknown, or the reference is not of that kind.
    """
    asked = parse_kind(kind)
    if not asked.name:
        return replace(asked, name=_inferred(reference))
    if asked.name == "choice" and not chosen(reference, {}):
        raise UserError(f"reference answer {shown(reference)} names no option; kind choice needs its letter, as in 'B'")
    if asked.name == "yesno" and truth(reference) is None:
        raise UserError(f"reference answer {shown(reference)} is neither yes, no, true nor false, as kind yesno needs")
    return asked


@dataclass(frozen=True)
class Reference:
    """A reference answer and the kind that answers are compared with it as."""

    text: str
    """As given: a bare answer, or a solution that marks its answer."""
    answer: str
    """The answer that the text stands for."""
    kind: Kind

    @classmethod
    def of(cls, text: str, kind: str = "") -> Self:
        """Reads a reference.

        Example:
            Reference.of("3 * 4 = 12\\n#### 12").answer  # "12", of kind number

        Args:
            kind: as users write it; the kind is inferred from the answer if it names none.

        Raises:
            UserError: the text holds no answer or none of the kind, or the kind is unknown; names the value.
        """
        answer = reference_of(text)
        return cls(text, answer, kind_of(kind, answer))


def check_reference(text: str, kind: str = "") -> str:
    """Returns the answer that a reference text stands for, once it is known to fit the kind.

    Raises:
        UserError: the text holds no answer or none of the kind, or the kind is unknown; names the value.
    """
    return Reference.of(text, kind).answer


def truth(answer: str) -> bool | None:
    """The truth value of a yes-or-no answer, which a reason may follow; None if it has none or both.

    Example:
        truth("Yes, since no prime divides it")  # True
        truth("Yes, no")  # None
    """
    text = respelt(answer).casefold().strip("{} ")
    first = _TRUTH.match(text)
    if not first or (text.startswith("(") and "," in text):
        return None
    value = TRUTHS[first[2]] is not bool(first[1])
    others = {TRUTHS[other[2]] is not bool(other[1]) for other in _OTHER_TRUTH.finditer(first[3])}
    return value if others <= {value} else None


def words(answer: str, kind: Kind = ANY) -> str:
    """The words and signs of a text as texts are compared: without punctuation, a leading article and capital letters.

    Example:
        words("The left-handed C++ user.")  # "left handed c + + user"
    """
    text = unstarred(respelt(answer))
    text = _HYPHEN.sub(" ", text if kind.case else text.casefold())
    parts = _PARTS.findall(text)
    if not kind.articles and len(parts) > 1 and parts[0].casefold() in ARTICLES and len(parts[1]) > 1:
        parts = parts[1:]
    return " ".join(parts)


def _inferred(reference: str) -> str:
    if looks_like_choice(reference):
        return "choice"
    if truth(reference) is not None:
        return "yesno"
    if quantity(reference):
        return "number"
    return "text" if is_words(normalise(reference)) else "math"
