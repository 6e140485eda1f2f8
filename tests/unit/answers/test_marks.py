"""The grammar of marks: where the answer of a response stands, and what of its line is the answer."""

from __future__ import annotations

import time

import pytest

from cepo.answers.extract import boxed, extract, is_unfinished
from cepo.answers.marks import Mark, final_part, marks


def test_every_mark_is_yielded_with_its_sort_position_and_content() -> None:
    text = "\\boxed{1}\n<answer>2</answer>\n#### 3\nAnswer: 4\n\\boxed{5"
    assert [(mark.sort, mark.content.strip(), mark.complete) for mark in marks(text)] == [
        ("box", "1", True),
        ("tag", "2", True),
        ("hash", "3", True),
        ("line", "4", True),
        ("box", "5", False),
    ]
    assert marks("so \\boxed{7}.") == [Mark("box", 3, 12, "7")]
    assert [text[mark.start :][:4] for mark in marks(text)] == ["\\box", "<ans", "####", "Answ", "\\box"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("a<think>b", "a"),
        ("<think>a</think><think>b</think>c", "c"),
        ("<think>a", ""),
        ("7<|im_end|>8", "7"),
        ("#### 18\n\nQuestion: next?\n#### 4", "#### 18"),
        ("\n\nQuestion: this?\n#### 4", "\n\nQuestion: this?\n#### 4"),
    ],
)
def test_thinking_and_what_follows_the_answer_are_left_out(text: str, part: str) -> None:
    assert final_part(text) == part


@pytest.mark.parametrize(
    "text",
    [
        "**Answer:**\n73",
        "**Answer**: 73",
        "__Answer:__ 73",
        "- Answer: 73",
        "1. Answer: 73",
        "1) **Answer:** 73",
        "> Answer: 73",
        "Answer:\n\n73",
        "Answer:\n$$73$$",
        "Answer:\n\\[\n73\n\\]",
        "Answer: $$\n73\n$$",
        "Answer:\n```\n73\n```",
        "Answer: `73`",
        "## Answer\n\n73",
        "**Final Answer**\n\n73",
        "The answer: 73",
        "The answer is: 73",
        "Correct answer: 73",
        "So the answer: 73",
        "Answer: 73. I hope this helps!",
        "Answer: 73 because 70+3 is 73",
        "Answer: 73 (since 70+3=73)",
        "Answer: **73**",
        "Answer\uff1a73",
        "Final Answer: The final answer is 73. I hope it is correct.",
        "\u7b54\u6848\uff1a73",
        "\\boxed{5}. No, wait. Answer: 73",
        "$$\n\\text{ANSWER: } 73\n$$",
        "Answer: 73, not 74",
        "\u2705 **Final Answer:** 73",
        "Answer: 73<br>",
        "Answer: The total is $73$.",
        "73 is it\n#### 73",
        "#### **73**",
        "#### x = 73",
        "\\boxed 73",
        "\\boxed73",
        "\\fbox{73}",
        "\\framebox{73}",
        "\\\\boxed{73}",
        "<final_answer>73</final_answer>",
        "<answer>```73```</answer>",
        "<answer>The answer is 73</answer>",
        "<answer>73</answer> (given in <answer> tags)",
        "\\boxed{73} as the \\boxed{} asks",
        "\\boxed{73} ... and again \\boxed{7",
        "\\boxed{73}\n\n#### Verification",
    ],
)
def test_the_number_alone_is_the_answer(text: str) -> None:
    assert (extract(text) or "").removeprefix("x = ").strip("$") in ("73", "\\[73\\]")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 5 dollars", "5 dollars"),
        ("#### 3/4", "3/4"),
        ("#### B", "B"),
        ("#### 10:30", "10:30"),
        ("Answer: B. 73\n\nExplanation: A is wrong", "B. 73"),
        ("Answer: Dr. Smith. He is right.", "Dr. Smith"),
        ("Answer: $73$ dollars", "73 dollars"),
        ("Answer: $5 and $6", "$5 and $6"),
        ("Answer: 73. Or 74.", "73. Or 74"),
        ("Answer: 73. Actually 74.", "73. Actually 74"),
        ("Answer: not 73", "not 73"),
        ("Answer: 73 or 74", "73 or 74"),
        ("The roots are \\boxed{2} and \\boxed{3}.", "2, 3"),
        ("Either \\boxed{3} or \\boxed{4}", "3 or 4"),
        ("$x=\\boxed{2}$, $y=\\boxed{5}$", "x=2, y=5"),
        ("\\boxed{5}. That is wrong: \\boxed{7}", "7"),
        ("\\boxed{5} and \\boxed{5}", "5"),
        ("\\boxed{12}, option B.\n\n**Answer: B**", "B"),
        ("\\boxed{\\text{The answer is } 7}", "7"),
    ],
)
def test_an_answer_stands_as_it_is_written(text: str, answer: str) -> None:
    assert extract(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "#### Step 5: add",
        "#### 5. Now we add",
        "<think>\\boxed{7}",
        "<think>\\boxed{7}</think> I am not sure.",
        "\\boxed notation",
        "Answer:\n" + "long words " * 20,
        "The answer is not \\boxed{42}.",
        "It can't be \\boxed{42}",
        "Clearly it is not $\\boxed{42}$.",
    ],
)
def test_headings_thinking_and_explanations_are_no_answers(text: str) -> None:
    assert extract(text) is None


@pytest.mark.parametrize(
    "lead", ["It is not 3 but ", "Why not? ", "Not 41, so ", "Tie the knot: ", "whether or not, $"]
)
def test_a_denial_elsewhere_in_the_sentence_denies_no_box(lead: str) -> None:
    assert extract(lead + "\\boxed{42}") == "42"


def test_an_unfinished_mark_is_told_from_a_missing_one() -> None:
    assert is_unfinished("\\boxed{5} and \\boxed{7")
    assert not is_unfinished("\\boxed{5} and \\boxed{}")
    assert boxed("\\boxed{1}, \\boxed{}, \\boxed{2}, \\boxed{1}, \\boxed{3") == ["1", "2"]


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 30_000 + "}" * 30_000,
        "\\boxed{7} " * 20_000,
        "<answer>" * 25_000,
        "<answer>7</answer>" * 11_000,
        "Answer:\n" * 25_000,
        "**" * 100_000,
        "* " * 100_000,
        "## Answer\n" * 20_000,
        "Answer: 7. It is. " * 11_000,
        "#### 7 a\n" * 20_000,
        "\n\n" * 100_000,
        "<think>" * 28_000,
        "\n\nQuestion: x\n#### 7" * 10_000,
        "Answer: " + "{" * 190_000,
        "Answer: " + "$x$. A " * 28_000,
    ],
    ids=lambda text: text[:12],
)
def test_hostile_marks_are_scanned_in_linear_time(text: str) -> None:
    begun = time.process_time()
    extract(text)
    assert time.process_time() - begun < 2
