"""Answers in words: statements without a mark, choices, truths and texts, and what denies or hedges them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from cepo.answers.choices import chosen, chosen_option, options
from cepo.answers.extract import reference_of
from cepo.answers.kinds import Kind, kind_of, truth, words
from cepo.answers.statements import stated
from services.verifier.decisions import decide


@pytest.mark.parametrize(
    ("response", "kind", "answer"),
    [
        ("The answer is $3\\sqrt{13}$.", "math", "3\\sqrt{13}"),
        ("The answer is $-3$ and $4$.", "math", "-3 and 4"),
        ("Hence \\[x=\\frac{1}{2}.\\]", "math", "x=\\frac{1}{2}"),
        ("So $x \\in (2,3]$.", "math", "x \\in (2,3]"),
        ("9 is the answer, since 4+5=9.", "number", "9"),
        ("Thus $9$ is the correct answer.", "number", "9"),
        ("The final answer is $7$. Note that $8$ is a common mistake.", "number", "7"),
        ("So it's $29.00.", "number", "$29.00"),
        ("The answer is 10.\nThis took 9 steps.", "number", "10"),
        ('```json\n{"answer": 42}\n```', "number", "42"),
        ("La respuesta es 42.", "number", "42"),
        ("= 73", "number", "73"),
        ("The answer is **42**!", "number", "42"),
        ("It is not (A). The answer is not A but (C).", "choice", "C"),
        ("A pretty girl is seen, thus C.", "choice", "C"),
        ("The answer is A because I computed it.", "choice", "A"),
        ("So B.", "choice", "B"),
        ("I choose (B)", "choice", "B"),
        ("Therefore, (B) is correct.", "choice", "B"),
        ("Thus the statement is true.", "yesno", "true"),
        ("No.", "yesno", "No"),
        ("The answer is London, not Paris", "text", "London"),
        ("The answer is indeed 12.", "number", "12"),
        ("So there are 12 eggs.", "number", "12 eggs"),
        ("The answer is C, since B is false.", "choice", "C"),
        ("I would say the answer is 12.", "number", "12"),
    ],
)
def test_a_statement_is_found(response: str, kind: str, answer: str) -> None:
    assert stated(response, kind) == answer


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        ("The answer is not A.", "A"),
        ("The answer cannot be B.", "B"),
        ("(A) (B) (C) (D)", "D"),
        ("A. cat\nB. dog\nC. bird", "C"),
        ("Choose from (A), (B), (C).", "C"),
        ("The answer is either A or B.", "A"),
        ("B is wrong.", "B"),
        ("Options: (A) cat (B) dog. I would choose the second.", "A"),
        ("I am not sure between A and B.", "B"),
        ("The statement is not true.", "true"),
        ("It is false that the answer is 5.", "5"),
        ("It is not true that the answer is 12.", "12"),
        ("I doubt that the answer is 12.", "12"),
        ("It would be wrong to say the answer is 12.", "12"),
        ("Suppose the answer is 12.", "12"),
        ("Bob says the answer is 12.", "12"),
        ("The least likely answer is 12.", "12"),
        ("My first answer was 12.", "12"),
        ("The incorrect answer is B.", "B"),
        ("The worst option is B.", "B"),
        ("Option A is better than option B.", "B"),
        ("Either yes or no.", "no"),
        ("The answer is yes and no.", "yes"),
        ("No clue, sorry.", "no"),
        ("There is no way to know.", "no"),
        ("It is true that I have no answer.", "true"),
        ("The answer is not Paris.", "Paris"),
        ("Paris or London", "Paris"),
        ("<think>The answer is (B).</think>\nHm.", "B"),
    ],
)
def test_a_denial_a_list_and_a_hedge_state_nothing(response: str, reference: str) -> None:
    kind = kind_of("", reference)
    answer = stated(response, kind.name)
    assert answer is None or decide(kind, answer, reference) is False


@pytest.mark.parametrize("response", ["5? 6?", "I do not know, I am afraid, at all"])
def test_questions_and_doubts_state_no_number(response: str) -> None:
    assert stated(response, "number") is None


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("A. cat; B. dog", ""),
        ("A) cat or B) dog", ""),
        ("A: no, B", ""),
        ("A. is wrong", ""),
        ("A. none of these; it is C", ""),
        ("A. or maybe C", ""),
        ("B. Actually C", ""),
        ("C. A pretty girl", "C"),
        ("D. Vitamin C", "D"),
        ("D. Both A and B", "D"),
        ("A. Both A and B", ""),
        ("B is correct", "B"),
        ("[A]", "A"),
        ("{A}", "A"),
        ("A\u3002", "A"),
        ("A|C", "AC"),
        ("A. I and II only", "A"),
        ("B. A is wrong", "B"),
        ("\u7b54\u6848\u662fB", "B"),
        ("C: 12", "C"),
        ("E. Not enough information", ""),
    ],
)
def test_a_label_counts_unless_more_is_said(answer: str, letters: str) -> None:
    assert chosen(answer.removesuffix(" is correct"), {}) == frozenset(letters)


def test_options_in_one_line_and_with_numbers_are_read() -> None:
    assert options("Which? (A) 5 (B) 6") == {"5": "A", "6": "B"}
    numbered = "Which barks?\n1) cat\n2) bird\n3) dog"
    assert options(numbered) == {"cat": "1", "bird": "2", "dog": "3"}
    assert options("Add:\n1) 5\n2) 6") == {}
    assert [chosen_option(text, numbered, "3", "number") for text in ("dog", "3) dog", "cat", "3) cat")] == [
        "3",
        "3",
        "1",
        None,
    ]
    assert chosen_option("dog", numbered, "7", "number") == ""
    assert chosen_option("B. a", "Q\nA. a\nB. b", "B", "choice") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Yes, no", None),
        ("True, but also False", None),
        ("No: yes!", None),
        ("True. False.", None),
        ("No. The answer is yes.", None),
        ("Yes, if x>0; no otherwise", None),
        ("Yes/No", None),
        ("not true", None),
        ("No solution", None),
        ("Yes, there is no obstruction", True),
        ("No, it is not true", False),
        ("It is true", True),
        ("Yes because 3 > 2", True),
    ],
)
def test_a_truth_counts_unless_the_other_one_follows(text: str, value: bool | None) -> None:
    assert truth(text) is value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("C++", "C"),
        ("C#", "C++"),
        ("-5", "5"),
        ("a+b", "a-b"),
        ("1/2", "1-2"),
        ("A+", "A-"),
        ("x<y", "x>y"),
        ("5%", "5"),
    ],
)
def test_signs_count_in_texts(one: str, other: str) -> None:
    assert words(one) != words(other)


def test_case_and_articles_count_in_texts_if_asked() -> None:
    assert words("The Nile") == words("nile") == words("the NILE.")
    assert words("The Nile", Kind(articles=True)) != words("Nile", Kind(articles=True))
    assert words("Nile", Kind(case=True)) != words("nile", Kind(case=True))
    assert words("left-handed") == words("left handed")


@pytest.mark.parametrize(
    ("text", "answer", "kind"),
    [
        ("`5`", "5", "number"),
        ("**True**", "True", "yesno"),
        ("Yes, it is possible.", "Yes, it is possible.", "yesno"),
        ("(C) 12", "(C) 12", "choice"),
        ("C: 12", "C: 12", "choice"),
        ("The answer is 5", "5", "number"),
        ("A, C", "A, C", "choice"),
        ("J. K. Rowling", "J. K. Rowling", "text"),
    ],
)
def test_references_are_read_as_data_sets_write_them(text: str, answer: str, kind: str) -> None:
    assert reference_of(text) == answer
    assert kind_of("", answer).name == kind or kind == "text"


WRONG = [("A", "B"), ("C", "B"), ("yes", "no"), ("False", "true"), ("Paris", "London"), ("A, C", "A"), ("B", "A, C")]
CLAUSES = [
    "{} or 17",
    "17 or {}",
    "not {}",
    "{}, not 17",
    "{}. Or 17.",
    "{} and 17",
    "maybe {}",
    "{}, because 17",
    "{} (17)",
]


@given(st.sampled_from(WRONG), st.lists(st.sampled_from(CLAUSES), min_size=1, max_size=3))
def test_a_clause_never_turns_a_wrong_answer_into_a_right_one(pair: tuple[str, str], clauses: list[str]) -> None:
    answer, reference = pair
    kind = kind_of("", reference)
    for clause in clauses:
        answer = clause.format(answer)
    assert decide(kind, answer, reference) is not True
    statement = stated(f"So the answer is {answer}", kind.name)
    assert statement is None or decide(kind, statement, reference) is not True
