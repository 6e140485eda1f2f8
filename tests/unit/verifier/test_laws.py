"""The laws of verdicts, for generated answers.

A reading is whole or none, equality is reflexive and symmetric, a clause never turns a wrong answer into a right one,
and a rewrite never changes a verdict.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

from hypothesis import assume, given, settings, strategies as st

from cepo.answers.perturb import changes, rewrites
from services.verifier.shapes.reading import read
from services.verifier.shapes.types import Group, Leaf, Shape
from tests.unit.verifier.equality import equal
from tests.unit.verifier.structured import RIGHT, WRONG

integers = st.integers(-99, 99).map(str)
fractions = st.fractions(-9, 9, max_denominator=12).map(
    lambda value: f"{'-' * (value < 0)}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
)
decimals = st.fractions(-9, 9, max_denominator=8).map(lambda value: f"{float(Fraction(round(value * 100), 100)):.2f}")
surds = st.builds("{}\\sqrt{{{}}}".format, st.integers(2, 9), st.sampled_from([2, 3, 5, 7]))
symbols = st.builds(
    "{}{}{}{}".format, st.integers(2, 9), st.sampled_from("xyn"), st.sampled_from("+-"), st.integers(1, 9)
)
numbers = st.one_of(integers, fractions, decimals)
values = st.one_of(numbers, surds, symbols)
words = st.sampled_from(["red", "blue", "green", "north", "south"]).map("\\text{{{}}}".format)


def joined(items: st.SearchStrategy[str], form: str, least: int = 2) -> st.SearchStrategy[str]:
    """Distinct elements in the brackets of a form."""
    return st.lists(items, min_size=least, max_size=4, unique_by=lambda item: item.strip("-")).map(
        lambda made: form.format(", ".join(made))
    )


lists, sets = joined(integers, "{}"), joined(st.one_of(numbers, words), "\\{{{}\\}}", 1)
tuples = joined(st.one_of(values, words), "({})", 3)
pairs = joined(integers, "({})").filter(lambda pair: pair.count(",") == 1)
intervals = st.tuples(st.integers(-9, 0), st.integers(1, 9), st.sampled_from("[("), st.sampled_from("])")).map(
    lambda made: f"{made[2]}{made[0]},{made[1]}{made[3]}"
)
inequalities = st.builds("x {} {}".format, st.sampled_from(["<", ">", "\\le", "\\ge"]), integers)
equations = st.builds("y = {}".format, values)
assignments = st.builds("x = {}, y = {}".format, integers, integers)
ratios = st.builds("{}:{}:{}".format, *[st.integers(1, 9)] * 3)
matrices = st.builds("\\begin{{pmatrix}}{}&{}\\\\{}&{}\\end{{pmatrix}}".format, *[integers] * 4)
residues = st.builds("x \\equiv {} \\pmod {{{}}}".format, st.integers(0, 4), st.integers(5, 9))
structures = st.one_of(
    lists, sets, tuples, pairs, intervals, inequalities, equations, assignments, ratios, matrices, residues
)
answers = st.one_of(values, structures)
CLAUSES = [
    " \\text{ or } {}", " \\text{ and } {}", ", {}", "; {}", " = {}", " \\ne {}", " \\text{ not } {}", " \\to {}",
    "\\ {}",    " \\text{ maybe } {}", " \\approx {}", " \\Rightarrow {}", " \\text{ (or } {}\\text{)}",
    " \\text{ if } x > {}",
]  # fmt: skip

_JOINED = CLAUSES[:4]


def digits(shape: object) -> Counter[str]:
    """The digits of everything that a reading holds."""
    if isinstance(shape, str):
        return Counter(re.findall(r"\d", shape))
    parts = shape if isinstance(shape, tuple) else () if isinstance(shape, bool) else tuple(vars(shape).values())
    return sum((digits(part) for part in parts), Counter())


@given(answers)
@settings(max_examples=150, deadline=None)
def test_a_reading_holds_every_digit_of_its_text(answer: str) -> None:
    assert not Counter(re.findall(r"\d", answer)) - digits(read(answer))


def test_readings_of_known_structures_hold_every_digit() -> None:
    texts = {text for table in (RIGHT, WRONG) for pairs in table.values() for pair in pairs for text in pair}
    shifted = {text for text in texts if re.match(r"\|x-|x_|.*\\ne|\S*\d\S*\\begin", text)}  # `|x-1| < 2` is its bounds
    lost = {text for text in texts - shifted if Counter(re.findall(r"\d", text)) - digits(read(text))}
    named = {text for text in lost if re.match(r"P\(|x_1|S_", text)}  # the index of a name that no one needs
    assert lost - named == set()


@given(structures, st.sampled_from(["?", " \\text{ maybe}", " 17", "+", "\\foo{1}", " \\text{ is wrong}", ")"]))
@settings(max_examples=100, deadline=None)
def test_what_follows_an_answer_is_never_dropped(answer: str, rest: str) -> None:
    assert not equal(answer + rest, answer)


@given(answers)
@settings(max_examples=100, deadline=None)
def test_every_answer_is_equal_to_itself(answer: str) -> None:
    assert equal(answer, answer)
    assert equal(f" {answer} ", answer)


@given(st.one_of(*(st.tuples(made, made) for made in (numbers, lists, sets, tuples, intervals, assignments, ratios))))
@settings(max_examples=150, deadline=None)
def test_equality_is_symmetric(texts: tuple[str, str]) -> None:
    one, other = texts
    shapes = read(one), read(other)
    if type(shapes[0]) is type(shapes[1]) and not isinstance(shapes[0], Leaf):
        assert equal(one, other) == equal(other, one)
    for made in rewrites(one)[:8]:
        if _style(read(made.text)) == _style(shapes[0]):
            assert equal(made.text, one) == equal(one, made.text), made


def _style(shape: Shape) -> tuple[type, str]:
    return type(shape), shape.style if isinstance(shape, Group) else ""


@given(answers, st.sampled_from(CLAUSES), st.data())
@settings(max_examples=150, deadline=None)
def test_a_clause_never_turns_a_wrong_answer_into_a_right_one(reference: str, clause: str, data: st.DataObject) -> None:
    assume(not (reference.startswith("x ") and clause in _JOINED))  # `x < 2 and x < 1` is `x < 1`
    wrong = data.draw(st.sampled_from([made.text for made in changes(reference) if "less" not in made.name]))
    for said in (reference, wrong, "17"):
        longer = wrong + clause.replace("{}", said)
        assert not equal(longer, reference), longer


@given(answers, st.data())
@settings(max_examples=40, deadline=None)
def test_a_rewrite_never_changes_a_verdict(reference: str, data: st.DataObject) -> None:
    for made in rewrites(reference):
        assert equal(made.text, reference), made
    wrong = data.draw(st.sampled_from([made.text for made in changes(reference)]))
    for text in (f"${wrong}$", f"\\displaystyle {wrong}", f" {wrong}.", f"\\; {wrong} \\;"):
        assert not equal(text, reference), text
