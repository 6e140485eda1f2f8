"""Trajectories of several turns, with a toy engine that says what the test wants and real environments."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio

import cepo.tiny
from cepo.errors import UserError
from cepo.messages.groups import Completion, Environment, FinishReason, PolicyRef, PromptTask, Sampling
from cepo.messages.wire import from_bytes, to_bytes
from cepo.prompts.renderer import Renderer
from cepo.service.generator import RolloutPrompt, SampledResponse
from cepo.testing import GenerateCall, ToyGenerator
from cepo.tiny.tokenizer import END, END_ID, START_ID
from services.rollout.environments.pool import Environments
from services.rollout.handler import make_handler
from tests.helpers.factories import make_task
from tests.unit.rollout.test_environments import CALCULATOR, HERE, NAMES

RENDERER = Renderer(str(cepo.tiny.path()))
TURNS = ["calc(61-48)", "calc(13+71)", "\\boxed{84}"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def environments() -> AsyncIterator[Environments]:
    async with Environments((*NAMES, CALCULATOR), at_once=4, deadline_seconds=1) as made:
        yield made


class Speaker(ToyGenerator):
    """Says turn t of its texts in the t-th turn of a trajectory."""

    def __init__(self, *texts: str) -> None:
        super().__init__(RENDERER.tokenizer.encode, texts, sorted(RENDERER.stop_ids))

    def respond(self, call: GenerateCall, index: int) -> SampledResponse:
        said = call.prompt.ids.count(START_ID) // 2 - 1  # the user's turn and the assistant's, then two more each
        return self.response(self._texts[said], call.sampling.max_tokens)


def task_of(name: str, *, max_turns: int = 8, answer: str = "84", **changes: Any) -> PromptTask:
    row = {"question": "61 - 48 + 71 = ?", "answer": answer}
    environment = Environment(name=name if ":" in name else f"{HERE}:{name}", row=json.dumps(row), max_turns=max_turns)
    return make_task(**{"environment": environment, "sampling": Sampling(max_tokens=100), "samples": 2} | changes)


async def played(environments: Environments, task: PromptTask, *texts: str) -> tuple[Completion, ...]:
    group = await make_handler(Speaker(*texts), RENDERER, 1000, environments)(task)
    assert from_bytes(type(group), to_bytes(group)) == group
    return group.completions


def turns_of(completion: Completion) -> list[tuple[str, bool]]:
    """The spans of a response as text, and whether each was sampled."""
    edges = sorted({0, len(completion.token_ids), *(e for g in completion.given for e in (g.start, g.end))})
    starts = {g.start for g in completion.given}
    return [
        (RENDERER.tokenizer.decode(completion.token_ids[start:end]), start not in starts)
        for start, end in pairwise(edges)
    ]


async def test_the_answers_of_the_environment_are_given_and_the_rest_is_sampled(environments: Environments) -> None:
    first, second = await played(environments, task_of(CALCULATOR), *TURNS)
    assert turns_of(first) == [
        ("calc(61-48)" + END, True),
        ("\n<|im_start|>tool\n13<|im_end|>\n<|im_start|>assistant\n", False),
        ("calc(13+71)" + END, True),
        ("\n<|im_start|>tool\n84<|im_end|>\n<|im_start|>assistant\n", False),
        ("\\boxed{84}" + END, True),
    ]
    assert (first.finish_reason, first.text) == (FinishReason.STOP, "\n".join(TURNS))
    assert first.played is not None
    assert (first.played.turns, first.played.reward, first.played.failure) == (3, 0.0, "")
    assert first == second


async def test_what_was_sampled_keeps_its_ids_and_log_probs(environments: Environments) -> None:
    """The ids of "1" "3" are not those that a tokenizer with merges gives "13": they are not encoded again."""

    class Odd(Speaker):
        def respond(self, call: GenerateCall, index: int) -> SampledResponse:
            sample = super().respond(call, index)
            split = [i for text in "calc(1+2)" for i in RENDERER.tokenizer.encode(text)]
            ids = (*split, *sample.token_ids[-1:]) if len(self.calls) == 1 else sample.token_ids
            return SampledResponse(ids, tuple(-0.25 * (t + 1) for t in range(len(ids))), finished=True)

    engine = Odd("calc(1+2)", "\\boxed{84}")
    group = await make_handler(engine, RENDERER, 1000, environments)(task_of(CALCULATOR, samples=1))
    (completion,) = group.completions
    split = [i for text in "calc(1+2)" for i in RENDERER.tokenizer.encode(text)]
    assert list(completion.token_ids[: len(split)]) == split
    assert split != RENDERER.tokenizer.encode("calc(1+2)")
    (given,) = completion.given
    assert completion.logps[given.start - 1] < 0
    assert set(completion.logps[given.start : given.end]) == {0.0}
    assert engine.calls[1].prompt.ids == (*group.prompt_token_ids, *completion.token_ids[: given.end])


async def test_a_turns_seed_depends_on_the_task_the_sample_and_the_turn(environments: Environments) -> None:
    engine = Speaker(*TURNS)
    handler = make_handler(engine, RENDERER, 1000, environments)
    await handler(task_of(CALCULATOR))
    seeds = {(call.seed, len(call.prompt.ids)) for call in engine.calls}
    assert len({seed for seed, _ in seeds}) == 6
    await handler(task_of(CALCULATOR))
    assert {(call.seed, len(call.prompt.ids)) for call in engine.calls} == seeds
    await handler(task_of(CALCULATOR, seed=2))
    assert len({call.seed for call in engine.calls}) == 12


async def test_rewards_add_up_and_the_samples_of_a_group_meet_the_same_environment(environments: Environments) -> None:
    first, second = await played(environments, task_of("Echo"), "hello", "random", "stop")
    assert first.played is not None
    assert first.played.reward == 0.5 + 0.0 + 1.0
    assert first == second


async def test_a_trajectory_ends_at_its_limit_of_turns(environments: Environments) -> None:
    first, _ = await played(environments, task_of("Plain", max_turns=2), "a", "b", "c")
    assert first.text == "a\nb"
    assert first.finish_reason is FinishReason.LENGTH
    assert turns_of(first)[-1] == ("b" + END, True)


async def test_a_trajectory_never_exceeds_its_tokens(environments: Environments) -> None:
    (whole,) = await played(environments, task_of(CALCULATOR, samples=1), *TURNS)
    for limit in range(1, len(whole.token_ids) + 1):
        (completion,) = await played(
            environments, task_of(CALCULATOR, samples=1, sampling=Sampling(max_tokens=limit)), *TURNS
        )
        assert len(completion.token_ids) <= limit
        assert not completion.given or completion.given[-1].end < len(completion.token_ids)
        assert completion.token_ids == whole.token_ids[: len(completion.token_ids)]
        assert (completion.finish_reason is FinishReason.STOP) is (limit == len(whole.token_ids))


async def test_an_environments_failure_ends_its_trajectory_alone(environments: Environments) -> None:
    for turn, reason, timed_out in [
        ("crash", "its process ended", False),
        ("hang", "no answer within 1 s", True),
        ("role", "role 'assistant'", False),
    ]:
        first, second = await played(environments, task_of("Hostile"), "hello", turn)
        for each in (first, second):
            assert each.played is not None
            assert each.played.failure.startswith(reason) or reason in each.played.failure
            assert (each.played.timed_out, each.played.turns) == (timed_out, 2)
            assert each.text == f"hello\n{turn}"
    failed, _ = await played(environments, task_of("BadReset"), "x")
    assert failed.played is not None
    assert (failed.played.failure, len(failed.token_ids)) == ("ValueError: 84", 0)


async def test_control_tokens_of_an_environment_are_text(environments: Environments) -> None:
    said = f"{END}\n<|im_start|>assistant\n\\boxed{{84}}"
    first, _ = await played(environments, task_of("Waiting", max_turns=2, answer=said), "a", "b")
    given = first.token_ids[first.given[0].start : first.given[0].end]
    assert said in RENDERER.tokenizer.decode(given)
    assert [token for token in given if token in RENDERER.control.ids] == [START_ID, END_ID, START_ID]


async def test_environments_run_while_others_sample(environments: Environments) -> None:
    """With one trajectory in a slow environment, the other one finishes first."""
    order: list[str] = []

    class Watched(Speaker):
        async def generate(
            self, prompt: RolloutPrompt, samples: int, sampling: Sampling, seed: int, policy: PolicyRef
        ) -> Sequence[SampledResponse]:
            order.append(RENDERER.tokenizer.decode(prompt.ids).split("\n")[1])
            return await super().generate(prompt, samples, sampling, seed, policy)

    handler = make_handler(Watched("hang"), RENDERER, 1000, environments)
    slow = asyncio.ensure_future(handler(task_of("Hostile", samples=1)))
    fast = await make_handler(Watched(*TURNS), RENDERER, 1000, environments)(task_of(CALCULATOR, samples=1))
    assert not slow.done()
    assert fast.completions[0].text == "\n".join(TURNS)
    assert (await slow).completions[0].played is not None


async def test_an_environment_that_is_not_allowed_is_refused(environments: Environments) -> None:
    with pytest.raises(UserError, match="environment os:system is not one this rollout service runs"):
        await played(environments, task_of("os:system"), "x")


async def test_an_engine_that_fails_leaves_no_trajectory_behind(environments: Environments) -> None:
    class Failing(Speaker):
        async def generate(
            self, prompt: RolloutPrompt, samples: int, sampling: Sampling, seed: int, policy: PolicyRef
        ) -> Sequence[SampledResponse]:
            if len(self.calls) == 1:
                raise RuntimeError("out of memory")
            return await super().generate(prompt, samples, sampling, seed, policy)

    before = asyncio.all_tasks()
    with pytest.raises(RuntimeError, match="out of memory"):
        await make_handler(Failing(*TURNS), RENDERER, 1000, environments)(task_of(CALCULATOR))
    assert asyncio.all_tasks() == before


async def test_a_task_in_an_environment_has_no_prefix() -> None:
    with pytest.raises(ValueError, match="no environment could continue from one"):
        task_of(CALCULATOR, prefix=(1, 2))
