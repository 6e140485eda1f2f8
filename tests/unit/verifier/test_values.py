"""How single values are read and compared: a table of answers and references, and the laws of equality."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from cepo.answers.kinds import Kind, Reference
from cepo.answers.notation import plain
from cepo.answers.quantities import read
from services.verifier import decisions
from services.verifier.decisions import decide, decide_element
from services.verifier.grader import Comparison, compare, equal_elements
from services.verifier.verdicts import Item, Question, question

Case = tuple[str, str, str, bool]
NUMBER, MATH = Kind("number"), Kind("math")


def table() -> Iterator[tuple[str, Case]]:
    """The rows of values.txt with the title of their section."""
    title = ""
    for line in (Path(__file__).parent / "values.txt").read_text().splitlines()[1:]:
        if line.startswith("# "):
            title = line[2:]
        elif line:
            answer, reference, verdict, *kind = line.split(" | ")
            yield title, (answer, reference, kind[0] if kind else "", verdict == "equal")


TABLE: dict[str, list[Case]] = defaultdict(list)
for section, row in table():
    TABLE[section].append(row)


def verdict(answer: str, reference: str, kind: str) -> bool:
    """What the verifier says of a boxed answer."""
    asked = question(Item(f"so $\\boxed{{{answer}}}$", reference, kind), Reference.of(reference, kind))
    assert isinstance(asked, Question)
    decided = asked.decide()
    return compare(asked.comparison()).equal if decided is None else decided


@pytest.mark.parametrize("section", TABLE)
def test_values_get_the_verdict_of_a_careful_reader(section: str) -> None:
    assert len(TABLE[section]) >= 5
    assert [case for case in TABLE[section] if verdict(*case[:3]) is not case[3]] == []


@pytest.mark.parametrize("section", TABLE)
def test_a_value_equals_itself_and_equality_has_no_direction(section: str) -> None:
    for answer, reference, kind, equal in TABLE[section]:
        assert equal_elements(answer, answer, MATH), answer
        if not kind and "=" not in plain(answer) and read(answer).expression and read(reference).expression:
            back = equal_elements(reference, answer, Kind("math", unevaluated=True))
            assert back == equal_elements(answer, reference, Kind("math", unevaluated=True)), (answer, reference)
            assert back or not equal, (answer, reference)


@pytest.mark.parametrize(
    "clause", [r"\text{ or } 17", r"\text{, maybe } 17", r", \text{ not } 17", r" \to 17", r" = 17"]
)
@pytest.mark.parametrize("answer", ["5", r"\frac{1}{2}", r"2\sqrt{3}", r"5\text{ cm}", "3:30", "x+1", "5\\%", "five"])
def test_a_further_clause_makes_no_answer_right(answer: str, clause: str) -> None:
    wrong = answer.replace("5", "6").replace("2", "4").replace("3", "7").replace("1", "9").replace("five", "six")
    assert decide(MATH, f"{wrong}{clause}", answer) is not True
    assert not verdict(f"{wrong}{clause}", answer, "")
    assert not verdict(f"{answer}{clause}", answer, "")


@pytest.mark.parametrize(
    ("answer", "reference", "kind", "equal"),
    [
        ("500 cm", "5 m", Kind("number", convert=True), True),
        ("500 cm", "5 m", NUMBER, False),
        ("500 cm", "5 kg", Kind("number", convert=True), False),
        ("2 hours 30 minutes", "150 min", Kind("number", convert=True), True),
        (r"2\pi\text{ m}", r"200\pi\text{ cm}", Kind("math", convert=True), True),
        ("123*456", "56088", NUMBER, False),
        ("123*456", "56088", Kind("number", unevaluated=True), True),
        ("1,5", "1.5", Kind("number", decimal_comma=True), True),
        ("1.234,5", "1234,5", Kind("number", decimal_comma=True), True),
        ("1,234", "1234", Kind("number", decimal_comma=True), False),
        ("50\\%", "50", NUMBER, True),
        ("50\\%", "50", Kind("number", percent_fraction=True), False),
        ("50\\%", "0.5", Kind("number", percent_fraction=True), True),
        ("0.5\\%", "0.5", NUMBER, False),
        ("Red", "red", MATH, True),
        ("Red", "red", Kind("math", case=True), False),
        ("0.67", r"\frac{2}{3}", Kind("number", digits=2), True),
        ("0.66", r"\frac{2}{3}", Kind("number", digits=2), False),
        ("0.333333", "1/3", NUMBER, True),
        ("0.33333", "1/3", NUMBER, False),
        ("0.000001", "1/999999", NUMBER, False),
    ],
)
def test_the_options_of_a_kind_decide_what_is_arguable(answer: str, reference: str, kind: Kind, equal: bool) -> None:
    assert equal_elements(answer, reference, kind) is equal


@pytest.mark.parametrize("answer", ["123*456", "2x+3x", r"\sqrt{8}", "(1+i)^2", "cat", "5 km", "3:30", "0.5", "x=2"])
def test_what_is_decided_before_the_pool_is_what_the_worker_decides(answer: str) -> None:
    for reference in ("56088", "5x", r"2\sqrt2", "2i", "act", "5 m", "4:30", r"\frac12", "x+1=3"):
        early = decide_element(answer, reference, MATH)
        assert early is None or early == equal_elements(answer, reference, MATH)


@pytest.mark.parametrize(
    "answer", ["(" * 400, "x^" * 300 + "x", "1" + "/1" * 300, "= " * 300, "\\frac" * 150, "-" * 900]
)
def test_deep_and_broken_expressions_are_only_texts(answer: str) -> None:
    assert read(answer).expression is None
    assert decide_element(answer, "7", MATH) is False


def test_a_reader_that_fails_leaves_its_item_to_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Question("7", "8", MATH)
    assert asked.decide() is False
    monkeypatch.setattr("services.verifier.verdicts.decide", lambda *_: [][0])
    assert asked.decide() is None


def test_huge_powers_have_no_value_and_take_no_time() -> None:
    assert decisions.EXACT_BITS < 10_000
    for tower in ("9^{9^{9^9}}", "2^{10^{12}}", "((99!)!)!", "(x+1)^{10^{9}}"):
        assert not compare(Comparison(tower, "7")).equal
