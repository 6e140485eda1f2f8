"""The reward of a response: each term by its formula, and the user's functions in grader processes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from cepo.errors import UserError
from cepo.messages.groups import Outcome, Reward, Sampling, ScoredGroup, Verdict
from services.verifier.handler import Verifier
from services.verifier.pool import GraderPool
from services.verifier.rewards import overlong, repeated, shorter
from tests.helpers.factories import make_completion, make_group, make_task
from tests.unit.verifier.graders import pids

HERE = "tests.unit.verifier.reward_functions"
NAMES = ("brief", "raises", "dies", "eats", "nan", "word", "process", "exits")
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[GraderPool]:
    async with GraderPool(1, deadline_seconds=100.0, functions=[f"{HERE}:{name}" for name in NAMES]) as made:
        yield made


async def scored(pool: GraderPool, lengths: dict[str, int], **rule: Any) -> ScoredGroup:
    """The scored group of responses with these lengths in tokens; the reference is 7 and `max_tokens` is 16."""
    names = tuple(f"{HERE}:{name}" for name in rule.pop("functions", ()))
    reward = Reward(**rule, functions=names)
    task = make_task(samples=len(lengths), reward=reward, sampling=Sampling(max_tokens=16))
    completions = tuple(make_completion(text, length) for text, length in lengths.items())
    group = make_group(list(lengths), task).model_copy(update={"completions": completions})
    return await Verifier(pool).verify(group)


async def verdict_of(pool: GraderPool, text: str, tokens: int = 3, **rule: Any) -> Verdict:
    return (await scored(pool, {text: tokens}, **rule)).verdicts[0]


@pytest.mark.parametrize(("tokens", "penalty"), [(0, 0.0), (12, 0.0), (13, -0.25), (14, -0.5), (16, -1.0), (99, -1.0)])
async def test_the_overlong_penalty_grows_in_the_buffer(tokens: int, penalty: float) -> None:
    assert overlong(tokens, 16, 4) == penalty
    assert overlong(tokens, 16, 0) == 0.0


async def test_the_length_reward_is_kimis() -> None:
    assert shorter([10, 20, 30, 20], [1.0, 1.0, 1.0, 0.0]) == [0.5, 0.0, -0.5, 0.0]
    assert shorter([10, 30], [0.0, 0.0]) == [0.0, -0.5]
    assert shorter([5, 5], [1.0, 0.0]) == [0.0, 0.0]
    assert shorter([], []) == []


async def test_repetition_is_the_share_of_ngrams_seen_before() -> None:
    assert repeated([1, 2, 3, 4], 2) == 0.0
    assert repeated([1, 2, 1, 2, 1, 2], 2) == pytest.approx(3 / 5)
    assert repeated([1] * 101, 1) == pytest.approx(100 / 101)
    assert repeated([1, 1], 3) == 0.0


async def test_the_papers_rule_is_the_default(pool: GraderPool) -> None:
    group = await scored(pool, {"\\boxed{7}": 3, "\\boxed{5}": 16, "no idea": 2})
    assert [v.reward for v in group.verdicts] == [v.accuracy for v in group.verdicts] == [1.0, 0.0, 0.0]
    assert [v.format for v in group.verdicts] == [1.0, 1.0, 0.0]


async def test_accuracy_and_format_are_weighed(pool: GraderPool) -> None:
    texts = {"\\boxed{7}": 3, "\\boxed{5}": 3, "\\boxed{}": 3, "seven": 3}
    group = await scored(pool, texts, accuracy=0.9, format=0.1)
    assert [v.reward for v in group.verdicts] == pytest.approx([1.0, 0.1, 0.0, 0.0])
    assert [v.accuracy for v in group.verdicts] == [1.0, 0.0, 0.0, 0.0]


async def test_dapos_reward_is_plus_or_minus_one_with_the_overlong_penalty_added(pool: GraderPool) -> None:
    """A right response of full length earns 0 and a wrong one -2 (arXiv:2503.14476, Eqs 7 and 13)."""
    lengths = {"\\boxed{7}": 4, "so \\boxed{7}": 16, "\\boxed{5}": 4, "so \\boxed{5}": 16, "seven": 14}
    group = await scored(pool, lengths, wrong=-1.0, overlong_buffer=4, overlong_factor=1.0)
    assert [v.reward for v in group.verdicts] == pytest.approx([1.0, 0.0, -1.0, -2.0, -1.5])


async def test_penalties_add_up_and_leave_the_accuracy_alone(pool: GraderPool) -> None:
    lengths = {"\\boxed{7}": 14, "is \\boxed{7}": 4}
    group = await scored(pool, lengths, overlong_buffer=4, overlong_factor=0.5, length=0.2, repetition=1.0)
    assert [v.penalty for v in group.verdicts] == pytest.approx([-0.25 - 0.1, 0.1])
    assert [v.reward for v in group.verdicts] == pytest.approx([0.65, 1.1])
    assert [v.accuracy for v in group.verdicts] == [1.0, 1.0]


async def test_a_repetitive_response_is_penalised(pool: GraderPool) -> None:
    group = await scored(pool, {"\\boxed{7}": 6}, repetition=0.5, repetition_ngram=1)
    completion = group.rollout.completions[0].model_copy(update={"token_ids": (4, 5, 4, 5, 4, 5)})
    again = await Verifier(pool).verify(group.rollout.model_copy(update={"completions": (completion,)}))
    assert group.verdicts[0].penalty == 0.0
    assert again.verdicts[0].penalty == pytest.approx(-0.5 * 4 / 6)


async def test_a_function_sees_the_sample_and_adds_to_the_reward(pool: GraderPool) -> None:
    found = await verdict_of(pool, "so \\boxed{7}", 5, functions=("brief", "word"))
    assert found.functions == pytest.approx(-0.05 + 0.25)
    assert found.reward == pytest.approx(1.2)
    assert (found.accuracy, found.outcome) == (1.0, Outcome.CORRECT)


async def test_a_function_runs_in_a_graders_process(pool: GraderPool) -> None:
    found = await verdict_of(pool, "\\boxed{7}", functions=("process",))
    assert found.functions != os.getpid()
    assert found.functions in pids(pool)


@pytest.mark.parametrize(
    ("name", "outcome", "reason"),
    [
        ("raises", Outcome.GRADER_ERROR, "raises failed with KeyError: 'no such thing'"),
        ("nan", Outcome.GRADER_ERROR, "nan failed with ValueError: it returned nan"),
        ("dies", Outcome.GRADER_ERROR, "dies killed the grader"),
        ("exits", Outcome.GRADER_ERROR, "exits killed the grader"),
        ("eats", Outcome.GRADER_ERROR, "eats failed with MemoryError"),
    ],
)
async def test_a_function_that_fails_is_no_verdict(pool: GraderPool, name: str, outcome: Outcome, reason: str) -> None:
    group = await scored(pool, {"\\boxed{7}": 3, "\\boxed{5}": 3}, functions=(name,))
    for verdict in group.verdicts:
        assert (verdict.outcome, verdict.reward, verdict.accuracy, verdict.failed) == (outcome, 0.0, 0.0, True)
        assert reason in verdict.reason
    assert not group.reward_spread
    after = await verdict_of(pool, "\\boxed{7}", functions=("brief",))
    assert after.outcome is Outcome.CORRECT


async def test_a_function_that_never_ends_is_no_verdict() -> None:
    async with GraderPool(1, deadline_seconds=1.0, functions=[f"{HERE}:loops"]) as hasty:
        verdict = await verdict_of(hasty, "\\boxed{7}", functions=("loops",))
        assert (verdict.outcome, verdict.reward, verdict.accuracy, verdict.failed) == (Outcome.TIMEOUT, 0.0, 0.0, True)
        assert "loops took longer than 1 s" in verdict.reason
        assert (await verdict_of(hasty, "\\boxed{7}")).outcome is Outcome.CORRECT


async def test_no_message_names_code_that_the_process_was_not_given(pool: GraderPool) -> None:
    group = make_group(task=make_task(reward=Reward(functions=("os:getpid",))))
    with pytest.raises(UserError, match="os:getpid is not one this verifier runs; start it with CEPO_REWARD_FUNCTIONS"):
        await Verifier(pool).verify(group)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:f", "no_such_module:f cannot be imported: ModuleNotFoundError: No module named 'no_such_mo"),
        (f"{HERE}:absent", "absent cannot be imported: AttributeError: "),
        (f"{HERE}:NUMBER", "NUMBER is int, not a function"),
    ],
)
async def test_a_function_that_is_not_there_is_said_at_the_start(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        async with GraderPool(1, functions=(name,)):
            pass
