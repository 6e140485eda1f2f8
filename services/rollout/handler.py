"""Turns a prompt task into a group of sampled responses: render the prompt, load the named policy, sample.

A task with a prefix continues from that prefix; the prefix is part of each response in the group. A task with an
environment is played, turn by turn.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cepo.errors import UserError
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import Completion, FinishReason, PromptTask, RolloutGroup
from cepo.prompts.renderer import Renderer
from cepo.service.generator import Generator, RolloutPrompt, SampledResponse
from cepo.service.metrics import GENERATED_TOKENS
from services.rollout.environments.pool import Environments
from services.rollout.playing import Player


def make_handler(
    generator: Generator, renderer: Renderer, max_model_len: int, environments: Environments | None = None
) -> Callable[[PromptTask], Awaitable[RolloutGroup]]:
    """Returns the function that the stage loop and the gRPC servicer call for each task.

    Args:
        environments: those that tasks may name; None: none.
    """
    player = Player(generator, renderer, environments or Environments(()))

    async def generate(task: PromptTask) -> RolloutGroup:
        compact_ids = renderer.compact_ids(task.messages, len(task.images))
        prompt_ids = renderer.expanded_ids(compact_ids, task.images)
        prompt = RolloutPrompt((*prompt_ids, *task.prefix), (*compact_ids, *task.prefix), task.images)
        if len(prompt_ids) + task.sampling.max_tokens > max_model_len:
            raise UserError(
                f"prompt of {len(prompt_ids)} tokens and max_tokens={task.sampling.max_tokens} exceed the context "
                f"length {max_model_len} of the rollout engine; shorten the prompt or lower max_tokens"
            )
        proof = await generator.load(task.policy)
        if task.environment is not None:
            completions = await player.play(task, task.environment, prompt)
        else:
            completions = await sampled(task, prompt)
        return RolloutGroup(task=task, prompt_token_ids=Int32Array.of(prompt_ids), completions=completions, proof=proof)

    async def sampled(task: PromptTask, prompt: RolloutPrompt) -> tuple[Completion, ...]:
        left = task.sampling.model_copy(update={"max_tokens": task.sampling.max_tokens - len(task.prefix)})
        samples = await generator.generate(prompt, task.samples, left, task.seed, task.policy)
        GENERATED_TOKENS.inc(sum(len(sample.token_ids) for sample in samples))
        return tuple(_completion(sample, task, renderer) for sample in samples)

    return generate


def _completion(sample: SampledResponse, task: PromptTask, renderer: Renderer) -> Completion:
    token_ids = (*task.prefix, *sample.token_ids)
    return Completion(
        token_ids=Int32Array.of(token_ids),
        logps=Float32Array.of(sample.logps),
        text=renderer.text(token_ids),
        finish_reason=FinishReason.STOP if sample.finished else FinishReason.LENGTH,
        step_ends=renderer.step_ends(token_ids, task.step_delimiter) if task.step_delimiter else (),
    )
