"""The audit of a data set: perturbed answers, samples, repeated questions, and the verifier on reference answers."""

from __future__ import annotations

import pytest

from cepo.answers.perturb import perturbed
from cepo.cli.preflight import grading
from cepo.cli.preflight.grading import check_gold
from cepo.data.audit import SAMPLE_ROWS, leaked, repeated, sample
from cepo.data.problems import Problem
from cepo.messages.groups import Message


def made(*questions: str) -> list[Problem]:
    return [Problem((Message(role="user", content=text),), "1", row) for row, text in enumerate(questions)]


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ("18", "19"),
        ("-9.50", "-10.50"),
        ("1,234", "2,234"),
        ("\\frac{3}{4}", "\\frac{4}{4}"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "\\left( 4, \\frac{\\pi}{2} \\right)"),
        ("C", "D"),
        ("z", "a"),
        ("\\text{Evelyn}", "\\text{Evelyo}"),
        ("\\sqrt{a}", "\\sqrt{b}"),
        ("\\pi", "17"),
    ],
)
def test_a_perturbed_answer_has_the_form_of_the_right_one(answer: str, wrong: str) -> None:
    assert perturbed(answer) == wrong


def test_answers_that_a_response_can_give_are_gradable() -> None:
    answers = "18", "-1,234.50", "3/4", "\\frac{\\pi}{2}", "C", "Evelyn", "(1, 2]", "x^2+1", "\\infty", "50\\%", "\\pi"
    assert check_gold(answers, "").ungradable == {}


def test_an_answer_that_is_not_found_in_its_own_box_is_not_gradable() -> None:
    reasons = check_gold(["7", "\\frac{1}{2", "7"], "").ungradable
    assert list(reasons) == ["\\frac{1}{2"]
    assert (
        "does not verify against itself: unparsed, the last \\boxed{}, <answer> or 'Answer:' is empty, never closes"
        in reasons["\\frac{1}{2"]
    )


def test_an_answer_that_a_wrong_one_passes_for_is_not_gradable() -> None:
    assert check_gold(["3", "900"], "number tolerance=1").ungradable == {
        answer: f"reference answer '{answer}' verifies against '{other}', which is another answer"
        for answer, other in (("3", "4"), ("900", "901"))
    }


def test_a_large_set_is_sampled_by_seed_and_a_small_one_is_taken_whole() -> None:
    problems = made(*map(str, range(SAMPLE_ROWS + 100)))
    rows = [[problem.row for problem in sample(problems, seed)] for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    assert len(rows[0]) == SAMPLE_ROWS
    assert rows[0] == sorted(set(rows[0]))
    assert sample(problems, 0, every=True) == problems
    assert sample(problems[:SAMPLE_ROWS], 0) == problems[:SAMPLE_ROWS]


def test_repeated_questions_and_leaks_are_found_whatever_their_spacing_and_case() -> None:
    train = made("What is 1 + 1?", "what  is\n1 + 1?", "What is 1 + 2?", "What is 1 + 1?")
    assert repeated(train) == [(1, 0), (3, 0)]
    assert leaked(train[2:], made("new", "What is 1 + 2? ")) == [(1, 2)]
    assert leaked(train, made("new")) == []


def test_a_reference_is_graded_as_the_kind_the_run_names() -> None:
    assert check_gold(["[0, 1)"], "interval").ungradable == {}
    assert check_gold(["A", "C"], "choice").ungradable == {}


def test_an_answer_that_is_refused_in_another_spelling_is_named_with_the_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        grading, "rewrites", lambda reference, _: [("in words", "a pair of dice"), ("itself", reference)]
    )
    gold = check_gold(["2", "3"], "")
    assert gold.ungradable == {}
    assert gold.narrow == {
        answer: f"reference answer '{answer}' is refused as 'a pair of dice' (in words)" for answer in ("2", "3")
    }


def test_one_answer_of_each_form_is_varied(monkeypatch: pytest.MonkeyPatch) -> None:
    varied: list[str] = []

    def none(reference: str, _: str) -> list[tuple[str, str]]:
        varied.append(reference)
        return []

    monkeypatch.setattr(grading, "changes", none)
    assert check_gold(["12", "34", "5", "6", "x=1", "\\text{Ann}", "\\text{Bob}"], "").forms == 4
    assert varied == ["12", "5", "x=1", "\\text{Ann}"]
