"""One verdict per kind of answer, by the real pool."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from cepo.messages.groups import Outcome
from services.verifier.pool import GraderPool
from services.verifier.verdicts import Item

pytestmark = pytest.mark.asyncio(loop_scope="module")
QUESTION = "Where do you read?\nOptions:\nA. bank\nB. library\nC. mall"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[GraderPool]:
    async with GraderPool(workers=1) as made:
        yield made


async def outcome(pool: GraderPool, answer: str, reference: str, kind: str, question: str = "") -> Outcome:
    (verdict,) = await pool.grade([Item(f"so \\boxed{{{answer}}}", reference, kind, question=question)])
    return verdict.outcome


@pytest.mark.parametrize(
    ("kind", "reference", "right", "wrong"),
    [
        ("number", "1234", "1,234.0", "1,235"),
        ("number", "5/2", "2\\frac{1}{2}", "2"),
        ("number", "0.25", "25\\%", "2.5\\%"),
        ("number", "1500", "1.5\\times 10^{3}", "1.5\\times 10^{2}"),
        ("number", "12 cm", "12 centimeters", "12 m"),
        ("number", "12", "12\\text{ apples}", "12x"),
        ("number", "2", "\\sqrt{4}", "\\sqrt{5}"),
        ("number tolerance=1%", "200", "201.9", "202.1"),
        ("number tolerance=0.01", "3.14", "\\pi", "\\frac{16}{5}"),
        ("number tolerance=1e-2", "3.14", "3.15", "3.16"),
        ("number digits=2", "3.14159", "3.14", "3.1"),
        ("math", "\\frac{x+1}{2}", "\\frac12 x + 0.5", "\\frac{x-1}{2}"),
        ("math", "2\\sqrt{2}", "\\sqrt{8}", "\\sqrt{6}"),
        ("set", "\\{1,2,3\\}", "3, 2 and 1", "1, 2"),
        ("set", "1, 2", "\\{2, 1\\}", "\\{2, 3\\}"),
        ("set", "\\emptyset", "\\{\\}", "\\{0\\}"),
        ("interval", "(0,1]", "\\left(0, 1\\right]", "[0,1)"),
        ("interval", "[-2,7]", "-2 \\le x \\le 7", "-2 < x \\le 7"),
        ("interval", "(-\\infty,0)\\cup(1,\\infty)", "(1,\\infty)\\cup(-\\infty,0)", "(0,1)"),
        ("tuple", "(1,2)", "1, 2", "2, 1"),
        ("tuple", "(1,\\frac{1}{2})", "\\langle 1, 0.5\\rangle", "(1, 2)"),
        (
            "matrix",
            "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
            "\\left[\\begin{array}{cc}1&2\\\\3&4\\end{array}\\right]",
            "\\begin{bmatrix}1&3\\\\2&4\\end{bmatrix}",
        ),
        ("equation", "y=2x+1", "2x+1=y", "y=2x-1"),
        ("equation", "y=2x+1", "y = 1 + 2x", "2x+1"),
        ("text", "New York", "\\text{new york}.", "York"),
        ("text", "x-ray", "X-Ray", "x-rays"),
        ("choice", "B", "(B) library", "C. library"),
        ("choice", "A, C", "C and A", "A"),
        ("choice", "B. library", "library", "mall"),
        ("yesno", "yes", "True", "no"),
        ("", "C", "\\text{(C)}", "D"),
        ("", "No", "no.", "yes"),
    ],
)
async def test_a_kind_accepts_the_right_answer_only(
    pool: GraderPool, kind: str, reference: str, right: str, wrong: str
) -> None:
    assert await outcome(pool, right, reference, kind) is Outcome.CORRECT
    assert await outcome(pool, wrong, reference, kind) is Outcome.WRONG
    assert await outcome(pool, reference, reference, kind) is Outcome.CORRECT


async def test_the_text_of_an_option_counts_as_its_letter(pool: GraderPool) -> None:
    assert await outcome(pool, "library", "B", "choice", QUESTION) is Outcome.CORRECT
    assert await outcome(pool, "mall", "B", "", QUESTION) is Outcome.WRONG


@pytest.mark.parametrize(
    ("response", "reference", "kind", "extracted"),
    [
        ("So the final answer is $\\frac{3}{4}$.", "0.75", "anywhere", "\\frac{3}{4}"),
        ("One is \\boxed{1}. The other is \\boxed{2}.", "\\{1,2\\}", "math anywhere", "1, 2"),
        ("Therefore the answer is (B).", "B", "anywhere", "B"),
        ("I think no.", "no", "yesno anywhere", "no"),
    ],
)
async def test_unmarked_answers_count_where_they_are_allowed(
    pool: GraderPool, response: str, reference: str, kind: str, extracted: str
) -> None:
    (verdict,) = await pool.grade([Item(response, reference, kind)])
    assert (verdict.outcome, verdict.extracted) == (Outcome.CORRECT, extracted)
    (strict,) = await pool.grade([Item(response, reference, kind.replace("anywhere", ""))])
    assert strict.outcome is not Outcome.CORRECT


async def test_an_unmarked_response_without_answer_is_unparsed(pool: GraderPool) -> None:
    (verdict,) = await pool.grade([Item("I do not know", "3", "anywhere")])
    assert verdict.outcome is Outcome.UNPARSED


@pytest.mark.parametrize(
    "response",
    ["<answer> 7 </answer>", "7 it is\n#### 7", "Answer: 7", "**Answer:** $7$", "<answer>\\boxed{7}</answer>"],
)
async def test_every_mark_is_read(pool: GraderPool, response: str) -> None:
    (verdict,) = await pool.grade([Item(response, "7")])
    assert (verdict.outcome, verdict.normalised) == (Outcome.CORRECT, "7")
