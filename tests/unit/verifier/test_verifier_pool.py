"""Verdicts by the real pool: its processes, its deadline, and what hostile answers do to it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cepo.errors import UserError
from cepo.messages.groups import FinishReason, Outcome
from services.verifier.functions import Call, Sample
from services.verifier.grader import Finding
from services.verifier.handler import Verifier
from services.verifier.pool import MEMORY_BYTES, Failure, GraderPool
from services.verifier.verdicts import Item
from services.verifier.worker import Worker
from tests.helpers.factories import make_completion, make_group, make_task
from tests.unit.verifier.graders import pids

DEADLINE_SECONDS = 1.0
"""Deadline of the pool whose items exceed it; other pools wait as long as a busy machine may need."""
PATIENT_SECONDS = 100.0
ENDLESS = "\\sum_{n=1}^{10^6} n^{n}"
"""A sum that the algebra does not finish; it is compared only where unevaluated answers count."""
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[GraderPool]:
    async with GraderPool(workers=2, deadline_seconds=PATIENT_SECONDS) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty() -> AsyncIterator[GraderPool]:
    names = tuple(f"tests.unit.verifier.reward_functions:{name}" for name in ("notes", "waits"))
    async with GraderPool(workers=2, deadline_seconds=DEADLINE_SECONDS, functions=names) as made:
        yield made


def boxed(answer: str, reference: str = "3", cut: bool = False) -> Item:
    kind = "unevaluated" if answer == ENDLESS else ""
    return Item(f"so \\boxed{{{answer}}}", reference, kind, cut=cut)


async def outcomes(pool: GraderPool, *items: Item) -> list[Outcome]:
    return [verdict.outcome for verdict in await pool.grade(items)]


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("7", "7"), ("1,234", "1234"), ("72.0", "72"), ("$18", "18"), ("18", "\\$18.00"), ("50\\%", "50\\%"),
        ("50\\%", "0.5"),
        ("50%", "50"), ("0.5", "\\frac{1}{2}"), ("0.333333", "1/3"), ("x^2+2x+1", "(x+1)^2"),
        ("2\\sqrt{2}", "\\sqrt{8}"),
        ("x=5", "5"), ("72\\text{ cm}", "72"), ("evelyn", "\\text{Evelyn}"), ("\\{2,1\\}", "\\{1,2\\}"),
        ("\u0663", "3"), ("72", "24 + 48 = 72\n#### 72"), ("\\pi/2", "\\frac{\\pi}{2}"),
    ],
)  # fmt: skip
async def test_equal_answers_are_correct(pool: GraderPool, answer: str, reference: str) -> None:
    (verdict,) = await pool.grade([boxed(answer, reference)])
    assert (verdict.outcome, verdict.reward, verdict.accuracy) == (Outcome.CORRECT, 1.0, 1.0), verdict
    assert verdict.extracted == answer


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("8", "7"), ("1.2", "1,2"), ("12", "1 2"), ("0.33", "1/3"), ("3.14", "\\pi"), ("x+1", "x+2"), ("None", "3"),
     ("listen", "silent"), ("(1,2)", "(2,1)"), ("5, 6", "5"), ("\\text{None}", "3")],
)  # fmt: skip
async def test_different_answers_are_wrong(pool: GraderPool, answer: str, reference: str) -> None:
    (verdict,) = await pool.grade([boxed(answer, reference)])
    assert (verdict.outcome, verdict.reward, verdict.accuracy) == (Outcome.WRONG, 0.0, 0.0), verdict
    assert verdict.extracted == answer


async def test_a_response_without_answer_is_unparsed_or_truncated_and_extracts_nothing(pool: GraderPool) -> None:
    texts = ["so 3", "\\boxed{}", "\\boxed{3"]
    finished = await pool.grade([Item(text, "3") for text in texts])
    cut = await pool.grade([Item(text, "3", cut=True) for text in texts])
    assert {verdict.outcome for verdict in finished} == {Outcome.UNPARSED}
    assert {verdict.outcome for verdict in cut} == {Outcome.TRUNCATED}
    assert {verdict.extracted + verdict.normalised for verdict in finished + cut} == {""}


async def test_an_answer_before_the_cut_counts(pool: GraderPool) -> None:
    assert await outcomes(pool, boxed("3", cut=True)) == [Outcome.CORRECT]


async def test_a_wrong_number_is_normalised_like_the_reference_would_be(pool: GraderPool) -> None:
    first, second = await pool.grade([boxed("0.5", "7"), boxed("\\frac{2}{4}", "7")])
    assert first.normalised == second.normalised == "1/2"


async def test_only_the_item_that_hangs_times_out_and_order_is_kept() -> None:
    items = [
        boxed("x+x", "2x"),
        boxed(ENDLESS),
        boxed("x+2x", "3x"),
        boxed(ENDLESS, "4"),
        *(boxed(f"x+{i}", "x+2") for i in range(4)),
    ]
    deadline = 3 * DEADLINE_SECONDS
    async with GraderPool(workers=2, deadline_seconds=deadline) as pool:
        begun = time.perf_counter()
        found = await outcomes(pool, *items)
    right, slow, wrong = Outcome.CORRECT, Outcome.TIMEOUT, Outcome.WRONG
    assert found == [right, slow, right, slow, wrong, wrong, right, wrong]
    assert time.perf_counter() - begun < 3 * deadline


async def test_the_loop_is_not_blocked_while_grading(hasty: GraderPool) -> None:
    async def longest() -> float:
        grading, found = asyncio.create_task(outcomes(hasty, boxed(ENDLESS))), 0.0
        while not grading.done():
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            found = max(found, time.perf_counter() - before)
        assert await grading == [Outcome.TIMEOUT]
        return found

    for _ in range(5):  # a busy machine may keep this process waiting, but not every time
        if await longest() < 0.3:
            return
    raise AssertionError("the loop stands still while a grader works")


async def asked(pool: GraderPool, function: str, note: Path) -> asyncio.Task[Finding | Failure]:
    """A call of a reward function that has begun: its process id is in `note`."""
    sample = Sample(str(note), question="", answer="7", extracted="", accuracy=0.0, tokens=3, truncated=False)
    call = asyncio.create_task(pool.ask(Call(f"tests.unit.verifier.reward_functions:{function}", sample)))
    while not note.exists():
        assert not call.done(), call.result()
        await asyncio.sleep(0)
    return call


async def test_an_answer_that_is_there_counts_however_late_this_process_looks(
    hasty: GraderPool, tmp_path: Path
) -> None:
    call = await asked(hasty, "notes", tmp_path / "note")
    time.sleep(2 * DEADLINE_SECONDS)  # as on a machine that is busy with other work
    assert await call == Finding(value=1.0)


async def test_a_worker_that_dies_costs_its_item_only(hasty: GraderPool, tmp_path: Path) -> None:
    calls = [await asked(hasty, "waits", tmp_path / name) for name in ("one", "two")]
    os.kill(int((tmp_path / "one").read_text()), signal.SIGKILL)
    killed, hung = [await call for call in calls]
    assert isinstance(killed, Failure)
    assert isinstance(hung, Failure)
    assert (killed.outcome, hung.outcome) == (Outcome.GRADER_ERROR, Outcome.TIMEOUT)
    assert await outcomes(hasty, boxed("3", "3")) == [Outcome.CORRECT]


async def test_a_worker_that_died_idle_costs_nothing(pool: GraderPool) -> None:
    await outcomes(pool, boxed("x+x", "2x"))
    for pid in pids(pool):
        os.kill(pid, signal.SIGKILL)
    while pids(pool):
        await asyncio.sleep(0.01)
    found = await outcomes(pool, *(boxed(f"x+{i}", "x+1") for i in range(3)))
    assert found == [Outcome.WRONG, Outcome.CORRECT, Outcome.WRONG]


async def test_grading_that_is_cancelled_leaves_the_pool_usable(pool: GraderPool) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await pool.grade([boxed(ENDLESS), boxed(ENDLESS, "4")])
    assert await outcomes(pool, boxed("x+x", "2x"), boxed("x+3", "2x")) == [Outcome.CORRECT, Outcome.WRONG]


@pytest.mark.parametrize(
    "answer",
    ["{" * 100_000 + "}" * 100_000, "{" * 450 + "}" * 450, "(" * 900, "9" * 999, "9" * 1_000_000,
     "\x00\x1b[31m\x07 5", "\u0660\u06f1\uff12\u0967", "\u00b2\u2460\u4e09", "10^{10^{10}}!", "\\sqrt" * 150,
     "1" + "/1" * 400,
     "x^" * 400 + "x", "\\int_0^1 x^{1000} dx", "\\sum_{n=1}^{10^9} n^{n}", "__import__('os').system('true')",
     "%s%n", "\ud800"],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
async def test_hostile_answers_get_a_verdict_and_never_a_reward(hasty: GraderPool, answer: str) -> None:
    (verdict,) = await hasty.grade([boxed(answer, "7")])
    assert verdict.outcome is not Outcome.CORRECT
    assert verdict.reward == 0.0
    assert len(verdict.extracted) <= 1000


async def test_memory_is_limited() -> None:
    limit = 600 * 2**20
    async with GraderPool(workers=1, memory_bytes=limit) as small:
        (address_space,) = (
            line for line in Path(f"/proc/{pids(small)[0]}/limits").read_text().splitlines() if "address space" in line
        )
        assert str(limit) in address_space
        assert await outcomes(small, boxed("x+x", "2x")) == [Outcome.CORRECT]


async def test_a_grader_that_cannot_start_is_no_verdict() -> None:
    with pytest.raises(RuntimeError, match="does not start"):
        async with GraderPool(workers=1, memory_bytes=2**20):
            pass


async def test_a_bad_reference_or_kind_is_a_user_error(pool: GraderPool) -> None:
    with pytest.raises(UserError, match="reference answer ''"):
        await pool.grade([boxed("3", reference="")])
    with pytest.raises(UserError, match="telepathy"):
        await pool.grade([Item("\\boxed{3}", "3", kind="telepathy")])


async def test_a_closed_pool_leaves_no_process() -> None:
    async with GraderPool(workers=2) as pool:
        started = pids(pool)
    assert len(started) == 2 + 2  # as many spares
    async with asyncio.timeout(60):
        while any(Path(f"/proc/{pid}").exists() for pid in started):
            await asyncio.sleep(0.01)


async def test_a_worker_that_is_killed_while_it_starts_is_no_hindrance_to_the_next() -> None:
    first, second = (Worker(PATIENT_SECONDS, MEMORY_BYTES) for _ in range(2))
    starting = asyncio.create_task(first.start())
    while first.pid is None:
        await asyncio.sleep(0)
    starting.cancel()
    first.kill()
    with pytest.raises(asyncio.CancelledError):
        await starting
    async with asyncio.timeout(50):
        await second.start()  # whose connection has the number of the one before
    second.kill()


async def test_a_group_gets_one_verdict_per_completion(pool: GraderPool) -> None:
    task = make_task(samples=4, reference_answer="24+48=72\n#### 72")
    group = make_group(["\\boxed{72}", "\\boxed{71}", "hm", "hm"], task)
    cut = make_completion("hm", finish_reason=FinishReason.LENGTH)
    group = group.model_copy(update={"completions": (*group.completions[:3], cut)})
    scored = await Verifier(pool).verify(group)
    assert scored.rollout == group
    assert [v.outcome for v in scored.verdicts] == [Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSED, Outcome.TRUNCATED]
    assert scored.reward_spread
