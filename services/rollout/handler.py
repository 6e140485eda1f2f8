"""A task becomes a group: render, load the named policy, sample. A function of its message and the engine.

A task with a prefix is sampled on from there; its responses hold the prefix too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cepo.errors import UserError
from cepo.messages.groups import Completion, FinishReason, ImageRef, PolicyRef, PromptTask, RolloutGroup, Sampling
from cepo.prompts.renderer import Renderer
from cepo.service.adapters import Engine
from cepo.service.metrics import GENERATED_TOKENS


@dataclass(frozen=True)
class Sample:
    """One sampled response as an engine returns it."""

    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    finished: bool
    """Whether it ended by itself, not at max_tokens."""


@dataclass(frozen=True)
class Prompt:
    """What is sampled from."""

    ids: tuple[int, ...]
    """As the model reads it."""
    compact_ids: tuple[int, ...]
    """With one placeholder for each image."""
    images: tuple[ImageRef, ...]

    def require_read(self, ids: Sequence[int]) -> None:
        """Compares what the engine says that it read.

        Raises:
            UserError: it is another prompt than the teacher and the trainer will read.
        """
        if tuple(ids) != self.ids:
            raise UserError(
                f"the engine reads {len(ids)} tokens where the prompt with its images has {len(self.ids)}; "
                "its image processor is not the one of this service"
            )


class Generator(Engine, Protocol):
    """An engine that samples with any policy it is asked for."""

    async def generate(
        self, prompt: Prompt, samples: int, sampling: Sampling, seed: int, policy: PolicyRef
    ) -> Sequence[Sample]:
        """Samples responses with a resident policy; a pure function of its arguments, up to the engine's numerics.

        Raises:
            UserError: an image cannot be had, or takes other tokens than the prompt says.
        """
        ...


def make_handler(
    generator: Generator, renderer: Renderer, max_model_len: int
) -> Callable[[PromptTask], Awaitable[RolloutGroup]]:
    """The rollout function behind the stage loop and the gRPC call."""

    async def generate(task: PromptTask) -> RolloutGroup:
        prompt_ids = renderer.prompt_ids(task.messages, task.images)
        compact_ids = renderer.compact_ids(task.messages, len(task.images))
        prompt = Prompt((*prompt_ids, *task.prefix), (*compact_ids, *task.prefix), task.images)
        if len(prompt_ids) + task.sampling.max_tokens > max_model_len:
            raise UserError(
                f"prompt of {len(prompt_ids)} tokens and max_tokens={task.sampling.max_tokens} exceed the context "
                f"length {max_model_len} of the rollout engine"
            )
        proof = await generator.load(task.policy)
        left = task.sampling.model_copy(update={"max_tokens": task.sampling.max_tokens - len(task.prefix)})
        samples = await generator.generate(prompt, task.samples, left, task.seed, task.policy)
        GENERATED_TOKENS.inc(sum(len(sample.token_ids) for sample in samples))
        completions = tuple(_completion(sample, task, renderer) for sample in samples)
        return RolloutGroup(task=task, prompt_token_ids=prompt_ids, completions=completions, proof=proof)

    return generate


def _completion(sample: Sample, task: PromptTask, renderer: Renderer) -> Completion:
    token_ids = (*task.prefix, *sample.token_ids)
    return Completion(
        token_ids=token_ids,
        logps=sample.logps,
        text=renderer.text(token_ids),
        finish_reason=FinishReason.STOP if sample.finished else FinishReason.LENGTH,
        step_ends=renderer.step_ends(token_ids, task.step_delimiter) if task.step_delimiter else (),
    )
