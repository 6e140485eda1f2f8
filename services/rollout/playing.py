"""Trajectories of several turns: the policy samples a turn, the environment answers it, and so on.

The answer's tokens are those that the chat template gives it; what was sampled is never tokenised again. Environments
run while other trajectories sample.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from cepo.errors import UserError
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import Completion, Environment, FinishReason, Message, Played, PromptTask
from cepo.messages.spans import Trajectory
from cepo.prompts.renderer import Renderer
from cepo.service.generator import Generator, RolloutPrompt, SampledResponse
from cepo.service.metrics import ENVIRONMENT_FAILURES, ENVIRONMENT_SECONDS, GENERATED_TOKENS
from services.rollout.environments.pool import Environments, Episode
from services.rollout.environments.protocol import EnvironmentFailure, GivenTurn

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Player:
    """Samples the trajectories of a task in its environment."""

    generator: Generator
    renderer: Renderer
    environments: Environments

    async def play(self, task: PromptTask, environment: Environment, prompt: RolloutPrompt) -> tuple[Completion, ...]:
        """Samples `task.samples` trajectories at the same time.

        Raises:
            UserError: this process does not run the environment.
        """
        self.environments.check_allowed(environment.name)
        playing = [asyncio.create_task(self._one(task, environment, prompt, i)) for i in range(task.samples)]
        try:
            return tuple(await asyncio.gather(*playing))
        except BaseException:
            for each in playing:
                each.cancel()
            await asyncio.gather(*playing, return_exceptions=True)
            raise

    async def _one(self, task: PromptTask, environment: Environment, prompt: RolloutPrompt, index: int) -> Completion:
        """One trajectory. The environment's failure ends it where it is, and is the trajectory's own."""
        state = _State(task, environment, prompt, index)
        episode = Episode(
            environment.name, json.loads(environment.row), _seed(f"{task.seed}/environment"), f"{task.group_id}/{index}"
        )
        try:
            async with self.environments.playing(episode) as opponent:
                while (said := await self._turn(state)) is not None:
                    with ENVIRONMENT_SECONDS.time():
                        step = await opponent.step({"role": "assistant", "content": said})
                    state.reward += step.reward
                    if step.done:
                        state.finish = FinishReason.STOP
                    if step.done or not self._given(state, said, step.messages):
                        break
        except EnvironmentFailure as failure:
            state.failure, state.timed_out = str(failure), failure.timed_out
            ENVIRONMENT_FAILURES.inc()
            log.warning("environment %s failed in %s: %s", environment.name, episode.name, failure)
        return self._completion(state)

    async def _turn(self, state: _State) -> str | None:
        """Samples a turn; returns its text, or None if `max_tokens` cut it."""
        sampling = state.task.sampling
        so_far = state.trajectory.token_ids
        prompt = RolloutPrompt((*state.prompt.ids, *so_far), (*state.prompt.compact_ids, *so_far), state.prompt.images)
        left = sampling.model_copy(update={"max_tokens": sampling.max_tokens - len(so_far)})
        (sample,) = await self.generator.generate(prompt, 1, left, state.seed, state.task.policy)
        GENERATED_TOKENS.inc(len(sample.token_ids))
        state.sampled(sample)
        return self.renderer.text(sample.token_ids) if sample.finished else None

    def _given(self, state: _State, said: str, turns: Sequence[GivenTurn]) -> bool:
        """Appends the environment's turns; False if the trajectory has no room for them or for another turn."""
        if state.turns == state.environment.max_turns:
            return False
        replies = [_message(turn) for turn in turns]
        state.messages.append(Message(role="assistant", content=said))
        try:
            given_ids = self.renderer.given_ids(state.messages, replies)
        except UserError as error:
            raise EnvironmentFailure(f"its messages cannot be rendered: {error}") from error
        if len(state.trajectory.token_ids) + len(given_ids) >= state.task.sampling.max_tokens:
            return False
        state.trajectory.give(given_ids)
        state.messages += replies
        return True

    def _completion(self, state: _State) -> Completion:
        ids, given, delimiter = state.trajectory.token_ids, state.trajectory.given, state.task.step_delimiter
        return Completion(
            token_ids=Int32Array.of(ids),
            logps=Float32Array.of(state.trajectory.logps),
            text=self.renderer.text(ids, given),
            finish_reason=state.finish,
            step_ends=self.renderer.step_ends(ids, delimiter, given) if delimiter else (),
            given=given,
            played=Played(turns=state.turns, reward=state.reward, failure=state.failure, timed_out=state.timed_out),
        )


class _State:
    """A trajectory as far as it is played."""

    def __init__(self, task: PromptTask, environment: Environment, prompt: RolloutPrompt, index: int) -> None:
        self.task = task
        self.environment = environment
        self.prompt = prompt
        self.messages = list(task.messages)
        self.trajectory = Trajectory()
        self.turns = 0
        self.reward = 0.0
        self.finish = FinishReason.LENGTH
        self.failure = ""
        self.timed_out = False
        self._index = index

    @property
    def seed(self) -> int:
        """The seed of the next turn: a function of the task's seed, the sample's index and the number of turns."""
        return _seed(f"{self.task.seed}/{self._index}/{self.turns}")

    def sampled(self, sample: SampledResponse) -> None:
        """Appends a turn of the policy."""
        self.trajectory.sample(sample.token_ids, sample.logps)
        self.turns += 1


def _message(turn: GivenTurn) -> Message:
    extra = {key: value for key, value in (("name", turn.name), ("tool_call_id", turn.tool_call_id)) if value}
    return Message(role=turn.role, content=turn.content, extra=json.dumps(extra) if extra else "")


def _seed(name: str) -> int:
    """A seed of 48 bits."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
