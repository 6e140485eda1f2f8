"""Where answers are found and how they are spelt."""

from __future__ import annotations

import time

import pytest

from cepo.answers.extract import extract, reference_of
from cepo.answers.kinds import check_reference
from cepo.answers.notation import MAX_ANSWER_CHARACTERS, normalise
from cepo.errors import UserError


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{5}.", "5"),
        ("\\boxed{4}, no: \\boxed{5}", "5"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{3}}", "3"),
        ("\\boxed {4}", "4"),
        ("\\boxed{ 7\n}", "7"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{\\text{Evelyn}} is it", "\\text{Evelyn}"),
        ("\\boxed{5} #### 6", "6"),
        ("3 + 4 = 7\n#### 72", "72"),
        ("#### 1\n#### $1,234", "$1,234"),
        ("#### -5.50 \nend", "-5.50"),
        ("\\boxed{None}", "None"),
        ("<answer> 5 </answer>", "5"),
        ("<answer>4</answer> no <ANSWER>5</ANSWER>", "5"),
        ("<answer>\\boxed{5}</answer>", "5"),
        ("<answer>5</answer>\n#### 6", "6"),
        ("\\boxed{5} \\boxed{}", "5"),
        ("my answer: 5", "5"),
        ("Answer: 4\nAnswer: $5$", "$5$"),
        ("**Final Answer:** 5", "5"),
        ("#### 4\nAnswer: 5", "5"),
    ],
)
def test_the_last_answer_is_found(text: str, answer: str) -> None:
    assert extract(text) == answer


@pytest.mark.parametrize(
    "text",
    ["", "the answer is 5", "\\boxed{}", "\\boxed{ }", "\\boxed{$$}", "\\boxed{5", "\\boxed{5} and \\boxed{7",
     "\\boxed", "#### Step 3: add", "####", "\\boxed{\x00\x07}", "\\boxed{\\text{}}",
     "<answer>5", "<answer></answer>", "<answer>4</answer><answer>5", "Answer:"],
)  # fmt: skip
def test_no_answer_is_none(text: str) -> None:
    assert extract(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" + "{" * 100_000 + "}" * 100_001,
        "\\boxed{" * 100_000,
        "\\boxed{" + "9" * 1_000_000 + "}",
        "\\boxed" + " " * 1_000_000,
        "#" * 1_000_000,
        "#### " * 200_000,
        "####1" * 200_000 + "x",
        "\\" * 1_000_000,
    ],
    ids=lambda text: text[:12],
)
def test_hostile_responses_are_read_in_linear_time(text: str) -> None:
    begun = time.process_time()  # that of this process alone, whatever else the machine does
    extract(text)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    ("answer", "normalised"),
    [
        ("1,234", "1234"), ("1{,}234", "1234"), ("1\\,234", "1234"), ("1,\\!234", "1234"),
        ("1,234,567.50", "2469135/2"),
        ("72.0", "72"), ("007", "7"), ("+5", "5"), ("5.", "5"), (".5", "1/2"), ("0.5", "1/2"), ("2/4", "1/2"),
        ("\\frac{1}{2}", "1/2"), ("\\dfrac12", "1/2"), ("-\\frac{1}{2}", "-1/2"), ("\\frac{-1}{2}", "-1/2"),
        ("\u22125", "-5"), ("- 5", "-5"), ("$18", "18"), ("\\$18.00", "18"), ("-$5", "-5"), ("$18$", "18"),
        ("\\(18\\)", "18"),
        ("50\\%", "50%"), ("50 %", "50%"), ("90^\\circ", "90"), ("90^{\\circ}", "90"), ("90\u00b0", "90"),
        ("\u0663", "3"), ("\uff11\uff12", "12"), ("1\x002", "12"), ("5\u200b", "5"),
        ("\\boldsymbol{5}", "5"), ("\\bm{5}", "5"), ("\\underline{5}", "5"), ("\\textsf{ A}", "A"),
        ("\\displaystyle \\frac12", "1/2"), ("\\displaystyle \\text{(C)}", "(C)"), ("\\textstyle x", "x"),
        ("\\varnothing", "\\emptyset"), ("\\varnothings", "\\varnothings"),
        ("x + 1", "x+1"), ("\\left( 1, 2 \\right)", "(1,2)"), ("\\text{New York}.", "new york"), ("Evelyn", "evelyn"),
    ],
)  # fmt: skip
def test_equal_answers_get_one_spelling(answer: str, normalised: str) -> None:
    assert normalise(answer) == normalised
    assert normalise(normalised) == normalised


@pytest.mark.parametrize(
    ("one", "other"),
    [("1 2", "12"), ("1, 234", "1,234"), ("x\u00b2", "x2"), ("x", "X"), ("12,34", "12.34"), ("1/0", "0"), ("50%", "50"),
     ("abc", "cab"), ("1 \\\\ 2", "12"), ("\\leftarrow", "arrow"), ("2 x", "2x")],
)  # fmt: skip
def test_answers_that_may_differ_keep_different_spellings(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@pytest.mark.parametrize("nothing", ["", " ", "$$", ".", "\x00", "\ud800", "9" * (MAX_ANSWER_CHARACTERS + 1)])
def test_what_is_no_answer_normalises_to_nothing(nothing: str) -> None:
    assert normalise(nothing) == ""


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("72", "72"),
        (" 72 ", "72"),
        ("She sold 24 + 48 = 72 clips.\n#### 72", "72"),
        ("so $\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
    ],
)
def test_a_reference_is_reduced_to_its_answer(reference: str, answer: str) -> None:
    assert reference_of(reference) == answer


@pytest.mark.parametrize("reference", ["", "  ", "\\boxed{}", "so \\boxed{5", "$$", "long " * 300])
def test_a_reference_without_answer_is_refused_by_value(reference: str) -> None:
    with pytest.raises(UserError) as caught:
        check_reference(reference)
    assert repr(reference)[:20] in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_checked_reference_is_returned() -> None:
    assert check_reference("#### 1,234") == "1,234"
