"""The wrong answers and the right spellings that are made out of a reference."""

from __future__ import annotations

import pytest

from cepo.answers.notation import normalise
from cepo.answers.perturb import changes, rewrites

REFERENCES = [
    "18", "-7", "0", "0.5", "1,234", "\\frac{3}{4}", "-\\frac{\\pi}{6}", "50\\%", "12 cm",
    "\\$18.50", "3\\sqrt{13}", "6 - 5i", "x=5",
    "y = 2x + 3", "(2,\\infty)", "\\left( 3, \\frac{\\pi}{2} \\right)", "\\{1,2\\}", "1,-2", "52_8",
    "x \\in [-2,7]", "-2 \\le x < 7",
    "\\begin{pmatrix} 1/5 \\\\ -18/5 \\end{pmatrix}", "p - q", "\\text{Evelyn}", "New York", "B", "yes", "False",
]  # fmt: skip


def texts(reference: str, kind: str = "") -> dict[str, str]:
    return {change.name: change.text for change in changes(reference, kind)}


def spellings(reference: str, kind: str = "") -> dict[str, str]:
    return {rewrite.name: rewrite.text for rewrite in rewrites(reference, kind)}


@pytest.mark.parametrize("reference", REFERENCES)
def test_changes_are_distinct_and_differ_from_the_reference(reference: str) -> None:
    made = changes(reference)
    assert len(made) >= 4
    assert len({normalise(change.text) for change in made} | {normalise(reference)}) == len(made) + 1


@pytest.mark.parametrize("reference", REFERENCES)
def test_the_first_rewrite_is_the_reference_itself(reference: str) -> None:
    made = rewrites(reference)
    assert made[0] == ("itself", reference)
    assert len({rewrite.text for rewrite in made}) == len(made) >= 4


@pytest.mark.parametrize(
    ("reference", "name", "text"),
    [
        ("\\frac{2023}{2024}", "numerator and denominator + 1", "\\frac{2024}{2025}"),
        ("\\frac{3}{4}", "number 2 + 1", "\\frac{3}{5}"),
        ("\\frac{3}{4}", "fraction turned over", "\\frac{4}{3}"),
        ("18", "the sign", "-18"),
        ("-7", "the sign", "7"),
        ("6 - 5i", "an inner sign", "6 + 5i"),
        ("(2,5]", "the first bound open or closed", "[2, 5]"),
        ("x \\in [-2,7]", "the last bound open or closed", "x \\in [-2, 7)"),
        ("(1,2)", "a swapped pair", "(2, 1)"),
        ("\\{1,2\\}", "an element less", "\\{1\\}"),
        ("1,-2", "an element more", "1,-2, 17"),
        ("12 cm", "another unit", "12 \\text{ km}"),
        ("x=5", "unequal", "x\\ne 5"),
        ("-2 \\le x < 7", "a bound open or closed", "-2 < x < 7"),
        ("x>3", "a relation turned", "x<3"),
        ("5", "unequal", "\\ne 5"),
        ("5", "another = ", "17 = 5"),
        ("17", "or another", "17 \\text{ or } 23"),
        ("\\text{Ann}, 3", "another word", "\\text{Ano}, 3"),
        ("B", "another letter", "A"),
        ("B", "or another letter", "B or A"),
        ("yes", "both", "yes and no"),
        ("frog", "two letters swapped", "rfog"),
    ],
)
def test_a_detail_is_changed(reference: str, name: str, text: str) -> None:
    assert texts(reference)[name] == text


@pytest.mark.parametrize(
    ("reference", "name", "text"),
    [
        ("0.5", "as a fraction", "\\frac{1}{2}"),
        ("-\\frac{7}{4}", "as a decimal", "-1.75"),
        ("\\frac{7}{4}", "as a mixed number", "1\\frac{3}{4}"),
        ("1234567", "with separators", "1,234,567"),
        ("50\\%", "as a share", "0.5"),
        ("5", "named after it", "5 = x"),
        ("5", "with a unit", "5 \\text{ cm}"),
        ("-13x+3", "with swapped terms", "3 - 13x"),
        ("y = 2x", "mirrored", "2x = y"),
        ("-2 \\le x < 7", "mirrored", "7 > x \\ge  -2"),
        ("1,-2", "in another order", "-2, 1"),
        ("\\frac{\\pi}{6}", "in plain text", "(pi)/(6)"),
        ("2\\sqrt{13}", "in Unicode", "2\u221a13"),
        ("A, C", "in another order", "C, A"),
        ("Nile", "with an article", "the Nile"),
    ],
)
def test_a_reference_is_respelt(reference: str, name: str, text: str) -> None:
    assert spellings(reference)[name] == text


def test_policies_decide_what_is_a_rewrite() -> None:
    assert "as a share" in spellings("50\\%", "percent=fraction")
    assert "without the sign" not in spellings("50\\%", "percent=fraction")
    assert "with an article" not in spellings("Nile", "articles")
    assert "in capitals" not in spellings("Nile", "case")
    assert spellings("5 m", "convert")["in a smaller unit"] == "500 \\text{ cm}"
    assert spellings("56088", "unevaluated")["unevaluated"] == "56081 + 7"
    assert spellings("\\frac{1}{4}", "comma=decimal")["as a decimal"] == "0,25"


def test_a_change_within_the_tolerance_is_not_made() -> None:
    assert "number 1 + 1" not in texts("200", "number tolerance=1%")
    assert "number 1 + 1" in texts("200", "number tolerance=0.1%")
    assert "number 1 + 1" not in texts("200\\pi", "number tolerance=1%")


@pytest.mark.parametrize("reference", ["\\lfloor 2.5 \\rfloor", "x^0", "\\gcd(12,18)", "0x"])
def test_numbers_that_may_not_matter_are_left_alone(reference: str) -> None:
    assert not any(name.startswith("number") for name in texts(reference, "math"))
