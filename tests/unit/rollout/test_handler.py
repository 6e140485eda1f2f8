"""The rollout handler with a toy generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import cepo.tiny
from cepo.errors import PolicyError, UserError
from cepo.messages.groups import FinishReason, Message, PolicyProof, PolicyRef, Sampling
from cepo.prompts.renderer import Renderer
from cepo.service.generator import RolloutPrompt, SampledResponse
from cepo.testing import GenerateCall, ToyGenerator
from services.rollout.handler import make_handler
from tests.helpers.factories import POLICY, make_proof, make_task
from tests.helpers.vision import MODEL, RENDERER as VISION_RENDERER, Picture, held_out

RENDERER = Renderer(str(cepo.tiny.path()))
((_, FIRST),) = held_out(1)
TEXTS = ["3+4=7\n\\boxed{7}", "", "3+4=8", "\u20ac 7"]


class TextGenerator(ToyGenerator):
    """Answers with fixed texts; every second one is cut by max_tokens."""

    def __init__(self) -> None:
        super().__init__(RENDERER.tokenizer.encode, TEXTS)

    def respond(self, call: GenerateCall, index: int) -> SampledResponse:
        return toy_sample(TEXTS[index], finished=index % 2 == 0)


def toy_sample(text: str, *, finished: bool) -> SampledResponse:
    ids = (*RENDERER.tokenizer(text)["input_ids"], *(sorted(RENDERER.stop_ids) if finished else ()))
    return SampledResponse(ids, tuple(-0.5 * t for t in range(len(ids))), finished)


async def test_a_task_becomes_a_complete_group() -> None:
    generator, task = TextGenerator(), make_task(samples=4, policy=POLICY)
    group = await make_handler(generator, RENDERER, 64)(task)
    assert group.task == task
    assert group.prompt_token_ids == RENDERER.prompt_ids(task.messages)
    assert group.proof == make_proof(POLICY)
    samples = [toy_sample(text, finished=i % 2 == 0) for i, text in enumerate(TEXTS)]
    assert [(tuple(c.token_ids), tuple(c.logps)) for c in group.completions] == [
        (s.token_ids, s.logps) for s in samples
    ]


async def test_responses_are_decoded_without_the_end_of_the_turn() -> None:
    group = await make_handler(TextGenerator(), RENDERER, 64)(make_task(samples=4))
    assert [c.text for c in group.completions] == TEXTS


async def test_the_finish_reason_tells_the_end_from_a_cut() -> None:
    group = await make_handler(TextGenerator(), RENDERER, 64)(make_task(samples=4))
    reasons = [FinishReason.STOP, FinishReason.LENGTH] * 2
    assert [c.finish_reason for c in group.completions] == reasons


async def test_the_engine_gets_what_the_task_names() -> None:
    generator = TextGenerator()
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=5, presence_penalty=2.0, max_tokens=9)
    task = make_task(samples=3, sampling=sampling, seed=12, policy=POLICY)
    await make_handler(generator, RENDERER, 64)(task)
    ids = RENDERER.prompt_ids(task.messages)
    assert generator.loaded == [POLICY]
    assert generator.calls == [GenerateCall(RolloutPrompt(ids, ids, ()), 3, sampling, 12, POLICY)]


async def test_the_same_task_gives_the_same_group() -> None:
    handler = make_handler(TextGenerator(), RENDERER, 64)
    assert await handler(make_task()) == await handler(make_task())


async def test_a_prompt_that_leaves_no_room_is_refused_before_anything_is_sampled() -> None:
    generator, task = TextGenerator(), make_task()
    length = len(RENDERER.prompt_ids(task.messages))
    await make_handler(generator, RENDERER, length + 16)(task)
    assert len(generator.calls) == 1
    message = f"prompt of {length} tokens and max_tokens=16 exceed the context length {length + 15} of the rollout"
    with pytest.raises(UserError, match=message):
        await make_handler(generator, RENDERER, length + 15)(task)
    assert len(generator.calls) == 1


async def test_an_engine_that_returns_too_few_samples_makes_no_group() -> None:
    class Short(TextGenerator):
        async def generate(
            self, prompt: RolloutPrompt, samples: int, sampling: Sampling, seed: int, policy: PolicyRef
        ) -> Sequence[SampledResponse]:
            return await super().generate(prompt, samples - 1, sampling, seed, policy)

    with pytest.raises(ValueError, match="3 completions for 4 samples"):
        await make_handler(Short(), RENDERER, 64)(make_task(samples=4))


async def test_a_policy_that_cannot_be_loaded_samples_nothing() -> None:
    class Broken(TextGenerator):
        async def load(self, policy: PolicyRef) -> PolicyProof:
            raise PolicyError("bound to no module")

    generator = Broken()
    with pytest.raises(PolicyError):
        await make_handler(generator, RENDERER, 64)(make_task(policy=POLICY))
    assert generator.calls == []


async def test_a_task_with_a_prefix_is_sampled_on_from_there_and_its_responses_hold_the_prefix() -> None:
    generator, prefix = TextGenerator(), tuple(RENDERER.tokenizer("first\n")["input_ids"])
    task = make_task(samples=2, prefix=prefix, step_delimiter="\n")
    group = await make_handler(generator, RENDERER, 64)(task)
    (call,) = generator.calls
    ids = (*RENDERER.prompt_ids(task.messages), *prefix)
    assert (call.prompt, call.seed) == (RolloutPrompt(ids, ids, ()), task.seed)
    assert call.sampling.max_tokens == task.sampling.max_tokens - len(prefix)
    assert group.prompt_token_ids == RENDERER.prompt_ids(task.messages)
    for completion, sample in zip(group.completions, [toy_sample(TEXTS[0], finished=True)], strict=False):
        assert completion.token_ids == (*prefix, *sample.token_ids)
        assert completion.logps == sample.logps
        assert completion.text == "first\n" + TEXTS[0]
        assert len(completion.step_ends) == 3
        assert completion.step_ends[-1] == len(completion.token_ids)


async def test_steps_are_told_only_where_they_are_wanted() -> None:
    group = await make_handler(TextGenerator(), RENDERER, 64)(make_task(samples=4))
    assert [c.step_ends for c in group.completions] == [()] * 4


def test_a_prefix_that_leaves_no_token_to_sample_is_no_task() -> None:
    with pytest.raises(ValueError, match="a prefix of 16 tokens leaves none of max_tokens=16"):
        make_task(prefix=(5,) * 16)


@pytest.mark.parametrize("image", [None, FIRST])
async def test_the_chat_template_is_rendered_once_a_task(image: Picture | None) -> None:
    """With an image, both forms of the prompt come from the same rendering."""
    renderings: list[Any] = []

    class CountingRenderer(Renderer):
        def compact_ids(self, messages: Sequence[Message], images: int) -> tuple[int, ...]:
            renderings.append(messages)
            return super().compact_ids(messages, images)

    text, images = ("<image>Find x.", (image.ref,)) if image else ("3 + 4 = ?", ())
    generator = TextGenerator()
    task = make_task(messages=(Message(role="user", content=text),), images=images)
    group = await make_handler(generator, CountingRenderer(MODEL), 128)(task)
    assert renderings == [task.messages]
    prompt = generator.calls[0].prompt
    assert prompt.ids == group.prompt_token_ids == VISION_RENDERER.prompt_ids(task.messages, images)
    assert prompt.compact_ids == VISION_RENDERER.compact_ids(task.messages, len(images))
    assert len(prompt.ids) - len(prompt.compact_ids) == (23 if image else 0)


def test_an_engine_that_reads_another_prompt_is_refused() -> None:
    prompt = RolloutPrompt(ids=(1, 9, 9, 9, 9, 2), compact_ids=(1, 9, 2), images=())
    prompt.require_read([1, 9, 9, 9, 9, 2])
    with pytest.raises(UserError, match="the engine read 4 tokens where the prompt with its images has 6"):
        prompt.require_read([1, 9, 9, 2])
    with pytest.raises(UserError, match="its image processor differs from this service's"):
        prompt.require_read([1, 9, 9, 9, 2, 9])
