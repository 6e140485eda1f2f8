r"""Makes wrong answers and right spellings out of a reference, to test how a reference is graded.

`changes` returns answers that look like the reference and are wrong, `rewrites` other ways to write it. The data checks
and the benchmark of verdicts grade both: a grader that accepts a change pays a wrong answer, and one that refuses a
rewrite loses a right one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from cepo.answers.choices import chosen
from cepo.answers.kinds import DIGITS, Kind, kind_of, truth, words
from cepo.answers.notation import as_number, normalise
from cepo.answers.quantities import Quantity, quantity
from cepo.answers.rewriting import respellings
from cepo.answers.structure import BOUND, NUMBER, RELATION, Bracketed, bracketed, elements, is_unbounded, numbers_matter

_DIGITS = re.compile(r"\d+", re.ASCII)
_LETTER = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]+")
_FRACTION = re.compile(r"\\[dtc]?frac *\{(-?\d+)\} *\{(\d+)\}|(?<![\d.])(\d+)/(\d+)(?![\d.])")
_INNER_SIGN = re.compile(r"(?<=[\w})])( *)([-+])( *)(?=[\w\\({])(?! *C\b)")
_PREFIX = re.compile(r"[A-Za-z](?:_\w)? *(?:=|\\in(?![a-zA-Z])) *")
_BOUNDS = {"\\leq": "<", "\\le": "<", "\\geq": ">", "\\ge": ">", "<": "\\le ", ">": "\\ge "}
_REVERSED = {"\\leq": "\\ge ", "\\le": "\\ge ", "\\geq": "\\le ", "\\ge": "\\le ", "<": ">", ">": "<"}
_OTHER = "17"
"""Used if an answer has no digit and no letter, and therefore different from it."""
_OTHER_UNITS = {"cm": "km", "m": "km", "kg": "mg", "g": "kg", "s": "h", "min": "h", "h": "min"}
_MAX_NUMBERS = 4
"""Numbers of one reference that are changed in turn; the first ones and the last."""


class AnswerVariant(NamedTuple):
    """Another text made from a reference."""

    name: str
    """What was done, for example `numerator + 1`."""
    text: str


def perturbed(answer: str) -> str:
    """A wrong answer of the same form: the first number plus 1, or the first word with another last letter.

    Example:
        perturbed("12 apples")  # "13 apples"
    """
    if digits := _DIGITS.search(answer):
        return _plus_one(answer, digits)
    if word := _LETTER.search(answer):
        return answer[: word.end() - 1] + _next_letter(word[0][-1]) + answer[word.end() :]
    return _OTHER


def changes(reference: str, kind: str = "") -> list[AnswerVariant]:
    r"""Answers that differ from a reference in one detail; each is wrong.

    Example:
        changes("\\frac{3}{4}")  # [("number 1 + 1", "\\frac{4}{4}"), ("number 2 + 1", "\\frac{3}{5}"), ...]

    Args:
        reference: the answer that `reference_of` returns.
        kind: as users write it.
    """
    asked = kind_of(kind, reference)
    makers = {"choice": _of_choice, "yesno": _of_truth, "text": _of_text}
    made = makers[asked.name](reference, asked) if asked.name in makers else _of_mathematics(reference, asked)
    return _distinct(made, {_key(reference, asked)}, asked)


def rewrites(reference: str, kind: str = "") -> list[AnswerVariant]:
    r"""Other ways to write a reference; each is right.

    Example:
        rewrites("0.5")  # [("itself", "0.5"), ("in dollar signs", "$0.5$"), ("as a fraction", "\\frac{1}{2}"), ...]
    """
    asked = kind_of(kind, reference)
    return _distinct((AnswerVariant(*made) for made in respellings(reference, asked)), set(), asked, exact=True)


def _distinct(made: Iterator[AnswerVariant], seen: set[str], kind: Kind, *, exact: bool = False) -> list[AnswerVariant]:
    """The variants whose text is new, in order."""
    kept = []
    for variant in made:
        key = variant.text if exact else _key(variant.text, kind)
        if key not in seen:
            seen.add(key)
            kept.append(variant)
    return kept


def _key(text: str, kind: Kind) -> str:
    return words(text, kind) if kind.name == "text" else normalise(text)


def _of_choice(reference: str, _: Kind) -> Iterator[AnswerVariant]:
    letters = sorted(chosen(reference, {}))
    other = next(letter for letter in "ABCDEFGHIJ" if letter not in letters)
    yield AnswerVariant("another letter", ", ".join([*letters[:-1], other]))
    yield AnswerVariant("a letter more", ", ".join([*letters, other]))
    if len(letters) > 1:
        yield AnswerVariant("a letter less", ", ".join(letters[:-1]))
    yield AnswerVariant("or another letter", f"{' and '.join(letters)} or {other}")
    yield AnswerVariant("not the letter", f"\\text{{not {', '.join(letters)}}}")
    yield AnswerVariant("a word", "answer")


def _of_truth(reference: str, _: Kind) -> Iterator[AnswerVariant]:
    right, wrong = ("yes", "no") if truth(reference) else ("no", "yes")
    yield AnswerVariant("the other truth", wrong)
    yield AnswerVariant("both", f"{right} and {wrong}")
    yield AnswerVariant("or the other truth", f"{right} or {wrong}")
    yield AnswerVariant("first the one, then the other", f"{right.capitalize()}, {wrong}")
    yield AnswerVariant("not the truth", f"not {right}")


def _of_text(reference: str, _: Kind) -> Iterator[AnswerVariant]:
    yield AnswerVariant("another word", perturbed(reference))
    yield AnswerVariant("not the words", f"\\text{{not }}{reference}")
    yield AnswerVariant("or another", f"{reference} or 17")
    yield AnswerVariant("another or", f"17 or {reference}")
    yield AnswerVariant("a word more", f"{reference} maybe")
    if word := re.search(r"(?<![\\\w])([a-zA-Z])([a-zA-Z])(?=[a-z])", reference):
        yield AnswerVariant(
            "two letters swapped", reference[: word.start()] + word[2] + word[1] + reference[word.end() :]
        )


def _of_mathematics(reference: str, kind: Kind) -> Iterator[AnswerVariant]:
    if numbers_matter(reference) and not (kind.tolerance and quantity(reference) is None):
        yield from (change for change in _numbers(reference) if not _close(change.text, reference, kind))
    yield from _signs(reference)
    yield from _parts(reference, kind)
    yield from _relations(reference)
    yield from _assigned(reference)
    yield from _units(quantity(reference), reference)
    yield from _wordings(reference)
    yield from _clauses(reference)


def _numbers(reference: str) -> Iterator[AnswerVariant]:
    numbers = list(NUMBER.finditer(reference))
    picked = numbers if len(numbers) <= _MAX_NUMBERS else [*numbers[: _MAX_NUMBERS - 1], numbers[-1]]
    for number in picked:
        yield AnswerVariant(f"number {numbers.index(number) + 1} + 1", _plus_one(reference, number))
    if found := _FRACTION.search(reference):
        above, below = (part for part in found.groups() if part is not None)
        form = "{}/{}" if "/" in found[0] else "\\frac{{{}}}{{{}}}"
        for name, pair in (
            ("numerator and denominator + 1", (int(above) + 1, int(below) + 1)),
            ("fraction turned over", (below, above.removeprefix("-"))),
        ):
            if int(above) != int(below) and int(above):
                changed = form.format(*pair)
                yield AnswerVariant(name, reference[: found.start()] + changed + reference[found.end() :])
    if (value := as_number(normalise(reference))) and value.denominator == 1:
        yield AnswerVariant("a digit more", f"{value}0")


def _close(text: str, reference: str, kind: Kind) -> bool:
    """Whether the tolerance or the digits of a kind make two numbers equal."""
    one, other = quantity(text), quantity(reference)
    if one is None or other is None:
        return False
    rounding = Fraction(1, 10**kind.digits) if kind.digits < DIGITS else 0
    return abs(one.value - other.value) <= max(kind.margin(other.value), rounding)


def _signs(reference: str) -> Iterator[AnswerVariant]:
    one = not RELATION.search(reference) and len(elements(reference)) == 1 and not bracketed(reference)
    if one and as_number(normalise(reference)) != 0 and "\\pm" not in reference and "\\text" not in reference:
        if reference.startswith("-") and not _INNER_SIGN.search(reference):
            yield AnswerVariant("the sign", reference[1:])
        elif not reference.startswith(("-", "\\begin", "\\emptyset")) and "\\cup" not in reference:
            plain = not _INNER_SIGN.search(reference)
            yield AnswerVariant("the sign", f"-{reference}" if plain else f"-({reference})")
    if (inner := _INNER_SIGN.search(reference)) and "\\pm" not in reference:
        other = {"-": "+", "+": "-"}[inner[2]]
        yield AnswerVariant("an inner sign", reference[: inner.start(2)] + other + reference[inner.end(2) :])


def _parts(reference: str, kind: Kind) -> Iterator[AnswerVariant]:
    """Changes of the elements of tuples, intervals, sets and lists."""
    prefix = _PREFIX.match(reference)
    start = prefix.end() if prefix else 0
    for name, text in _of_elements(reference[start:], kind):
        yield AnswerVariant(name, reference[:start] + text)


def _of_elements(reference: str, kind: Kind) -> Iterator[AnswerVariant]:
    group = bracketed(reference)
    if group is None:
        items = elements(reference)
        if len(items) > 1 and not RELATION.search(reference):
            yield AnswerVariant("an element less", ", ".join(items[:-1]))
            yield AnswerVariant("an element more", f"{reference}, {_other(reference)}")
        return
    items = list(group.items)
    if group.is_set:
        if len(items) > 1:
            yield AnswerVariant("an element less", group.of(items[:-1]))
        yield AnswerVariant("an element more", group.of([*items, _other(reference)]))
        return
    if len(items) == 2 and _differ(*items):
        yield AnswerVariant("a swapped pair", group.of(items[::-1]))
        if kind.name in ("", "math", "interval"):
            yield from _bounds(group)
    if len(items) > 2:
        if _differ(*items[:2]):
            yield AnswerVariant("a swapped pair", group.of([items[1], items[0], *items[2:]]))
        yield AnswerVariant("an element less", group.of(items[:-1]))


def _bounds(group: Bracketed) -> Iterator[AnswerVariant]:
    for name, at, value in (("first", 0, group.items[0]), ("last", -1, group.items[-1])):
        if not is_unbounded(value):
            yield AnswerVariant(f"the {name} bound open or closed", group.of(group.items, turned=at))


def _relations(reference: str) -> Iterator[AnswerVariant]:
    if bound := BOUND.search(reference):
        for name, table in (("a bound open or closed", _BOUNDS), ("a relation turned", _REVERSED)):
            yield AnswerVariant(name, reference[: bound.start()] + table[bound[0]] + reference[bound.end() :])


def _assigned(reference: str) -> Iterator[AnswerVariant]:
    name = re.match(r"[A-Za-z]\w* *= *(?=[\w\\])", reference)
    if name and len(RELATION.findall(reference)) == len(elements(reference)) == 1:
        yield AnswerVariant("unequal", reference.replace("=", "\\ne ", 1))
        if as_number(normalise(reference[name.end() :])):
            yield AnswerVariant("the sign", f"{name[0]}-{reference[name.end() :]}")


def _units(stated: Quantity | None, reference: str) -> Iterator[AnswerVariant]:
    if stated and (other := _OTHER_UNITS.get(stated.unit)):
        number = re.match(r"[^a-zA-Z\\]+|\\[dt]?frac *\{\d+\} *\{\d+\} *", reference)
        if number:
            yield AnswerVariant("another unit", f"{number[0].strip()} \\text{{ {other}}}")
            yield AnswerVariant("an area of the unit", f"{number[0].strip()} \\text{{ {stated.unit}}}^4")


def _wordings(reference: str) -> Iterator[AnswerVariant]:
    """Another letter in each text: `\\text{Ann}` becomes `\\text{Ano}`."""
    for text in re.finditer(r"\\text\w*\{([^{}]*[a-zA-Z]{3}[^{}]*)\}", reference):
        if quantity(reference) is None and (word := re.search(r"[a-zA-Z]{3,}", text[1])):
            at = text.start(1) + word.end() - 1
            if word[0].casefold() not in ("and", "the"):
                yield AnswerVariant("another word", reference[:at] + _next_letter(reference[at]) + reference[at + 1 :])


def _clauses(reference: str) -> Iterator[AnswerVariant]:
    """The reference inside a statement that denies it, leaves a choice, or equates it with another number."""
    other = _other(reference)
    yield AnswerVariant("or another", f"{reference} \\text{{ or }} {other}")
    yield AnswerVariant("another or", f"{other} \\text{{ or }} {reference}")
    yield AnswerVariant("not", f"\\text{{not }} {reference}")
    if not RELATION.search(reference):
        yield AnswerVariant("unequal", f"\\ne {reference}")
        yield AnswerVariant("another = ", f"{other} = {reference}")
        yield AnswerVariant("less than", f"< {reference}")


def _other(reference: str) -> str:
    """A number that the reference does not hold."""
    return _OTHER if _OTHER not in _DIGITS.findall(reference) else "23"


def _differ(one: str, other: str) -> bool:
    return normalise(one) != normalise(other)


def _plus_one(text: str, number: re.Match[str]) -> str:
    return f"{text[: number.start()]}{int(number[0]) + 1}{text[number.end() :]}"


def _next_letter(letter: str) -> str:
    return {"z": "a", "Z": "A"}.get(letter) or chr(ord(letter) + 1)
