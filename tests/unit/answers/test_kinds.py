"""How kinds are written, inferred and checked; quantities and choices as they are read."""

from __future__ import annotations

from fractions import Fraction

import pytest

from cepo.answers.choices import chosen, options
from cepo.answers.kinds import KINDS, OPTIONS, Kind, check_reference, kind_of, parse_kind, truth, words
from cepo.answers.quantities import quantity, units_conflict
from cepo.answers.statements import stated
from cepo.errors import UserError


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ("72", "number"), ("-1,234.5", "number"), ("\\frac{3}{4}", "number"), ("50\\%", "number"), ("12 cm", "number"),
        ("C", "choice"), ("(D)", "choice"), ("\\text{(B)}", "choice"), ("B. a library", "choice"),
        ("yes", "yesno"), ("\\text{False}", "yesno"), ("Evelyn", "text"), ("New York", "text"),
        ("x", "math"), ("K", "math"), ("x^2+1", "math"), ("(1,2)", "math"), ("\\{1,2\\}", "math"), ("2x", "math"),
    ],
)  # fmt: skip
def test_a_kind_is_inferred_from_the_reference(reference: str, kind: str) -> None:
    assert kind_of("", reference).name == kind
    assert kind_of("math", reference).name == "math"


def test_options_of_a_kind_are_read() -> None:
    asked = parse_kind("number tolerance=2% anywhere")
    assert (asked.name, asked.anywhere, asked.relative) == ("number", True, True)
    assert asked.margin(Fraction(-50)) == 1
    assert parse_kind("number tolerance=0.5").margin(Fraction(50)) == Fraction(1, 2)
    assert parse_kind("anywhere").name == ""
    assert parse_kind("matrix digits=2").digits == 2


def test_policies_of_a_kind_are_read_with_or_without_a_name() -> None:
    asked = parse_kind("unevaluated convert comma=decimal percent=fraction case articles")
    assert (asked.name, asked.unevaluated, asked.convert, asked.decimal_comma) == ("", True, True, True)
    assert (asked.percent_fraction, asked.case, asked.articles) == (True, True, True)
    assert parse_kind("text case") == Kind("text", case=True)
    assert kind_of("convert", "5 m") == Kind("number", convert=True)


def test_every_option_is_described_and_off_by_default() -> None:
    for option in OPTIONS:
        written = option.replace("=N", "=3").replace("=X", "=0.5")
        assert parse_kind(f"number {written}") != parse_kind("number")


@pytest.mark.parametrize(
    "kind",
    [
        "telepathy",
        "math sideways",
        "set tolerance=1",
        "number tolerance=",
        "number tolerance=-1",
        "digits=99",
        "comma=thousands",
        "text case=no",
        "math set",
    ],
)
def test_an_unknown_kind_is_refused_with_the_list_of_kinds(kind: str) -> None:
    with pytest.raises(UserError) as caught:
        check_reference("3", kind)
    assert repr(kind) in str(caught.value)
    assert all(name in str(caught.value) for name in KINDS)


@pytest.mark.parametrize(("reference", "kind"), [("a library", "choice"), ("12", "choice"), ("maybe", "yesno")])
def test_a_reference_that_is_not_of_its_kind_is_refused(reference: str, kind: str) -> None:
    with pytest.raises(UserError, match=reference):
        check_reference(reference, kind)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("1,234.50", "2469/2", ""), ("-3/4", "-3/4", ""), ("2\\frac{1}{2}", "5/2", ""), ("1 3/4", "7/4", ""),
        ("1.5e3", "1500", ""), ("2\\times 10^{-3}", "1/500", ""), ("6.02 x 10^23", "602000000000000000000000", ""),
        ("3 million", "3000000", ""), ("12 cm", "12", "cm"), ("12 centimeters", "12", "cm"),
        ("5\\text{ km/h}", "5", "km/h"),
        ("9 square meters", "9", "m^2"), ("9\\text{ m}^2", "9", "m^2"), ("4 apples", "4", "apples"),
        ("$18.00", "18", "$"),
    ],
)  # fmt: skip
def test_quantities_are_read(text: str, value: str, unit: str) -> None:
    found = quantity(text)
    assert found is not None
    assert (found.value, found.unit) == (Fraction(value), unit)


@pytest.mark.parametrize(
    "text", ["2x", "2 x", "3 pi", "5 sin", "1e999", "x", "1,2", "", "2\\frac{3}{2}", "7 ab", "1/0"]
)
def test_what_is_no_quantity_is_none(text: str) -> None:
    assert quantity(text) is None


def test_units_conflict_if_both_are_given_and_differ() -> None:
    read = {text: quantity(text) for text in ("5 cm", "5 m", "5 centimetres", "5 apples", "5")}
    known = {text: found for text, found in read.items() if found is not None}
    assert len(known) == len(read)
    assert units_conflict(known["5 cm"], known["5 m"])
    assert not units_conflict(known["5 cm"], known["5 centimetres"])
    assert not units_conflict(known["5 cm"], known["5"])
    assert units_conflict(known["5 apples"], known["5 m"])


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("C", "C"), ("c", "C"), ("(C)", "C"), ("C.", "C"), ("\\text{(C)}", "C"), ("C. a mall", "C"), ("C) a mall", "C"),
        ("option C", "C"), ("The correct answer is (C)", "C"), ("**C**", "C"), ("A, C", "AC"), ("C and A", "AC"),
        ("A, B, and D", "ABD"), ("ACD", "ACD"), ("a library", "B"), ("A LIBRARY.", "B"), ("a dog", ""),
        ("12", ""), ("", ""),
    ],
)  # fmt: skip
def test_letters_are_read(answer: str, letters: str) -> None:
    listed = options("Where?\nA. bank\nB. a library\nC) mall\n")
    assert listed == {"bank": "A", "a library": "B", "mall": "C"}
    assert chosen(answer, listed) == frozenset(letters)


def test_truths_and_words() -> None:
    assert [truth(text) for text in ("Yes.", "yes, since 3 > 2", "\\text{No}", "TRUE", "yesterday", "maybe")] == [
        True, True, False, True, None, None,
    ]  # fmt: skip
    assert [truth(text) for text in ("{Yes, no}", "(yes, 3)", "{Yes}", "(No)")] == [None, None, True, False]
    assert words("\\text{New  York}.") == words("new york") != words("york new")


@pytest.mark.parametrize(
    ("response", "kind", "answer"),
    [
        ("It is not A.\nSo the answer is (B).", "choice", "B"),
        ("Thus the answer is B. because A is wrong", "choice", "B"),
        ("Let me see.\n\nYes, it does.", "yesno", "Yes"),
        ("The answer is Paris", "text", "Paris"),
        ("", "text", None),
    ],
)
def test_unmarked_statements_are_found(response: str, kind: str, answer: str | None) -> None:
    assert stated(response, kind) == answer
