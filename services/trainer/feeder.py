"""Makes the tasks of a step, and publishes them.

The tasks are a pure function of the seed, the step, the policies and, with a curriculum, the pass rates of earlier
steps, so a resumed run needs no stored queue.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from cepo.data.problems import Problem, Problems
from cepo.messages.groups import Environment, Placement, PolicyRef, PromptTask, Purpose, Reward, Sampling, Stage
from cepo.run.config import RunConfig
from cepo.run.data import DataConfig
from cepo.service.bus import Bus, stream_of
from services.trainer.pipeline import Pipeline
from services.trainer.sources import PassHistory

MAX_WAITING = 4096
"""The number of groups on the rollout stream at which the feeder waits."""
FULL_ROUTE = (Stage.ROLLOUT, Stage.VERIFY, Stage.TEACH)
SHORT_ROUTE = (Stage.ROLLOUT, Stage.VERIFY)


@dataclass(frozen=True)
class StepSupply:
    """Additional prompts for a step (`cepo.algo.base.Supply`)."""

    prompts: int
    """The number of prompts that the step began with."""
    further: Iterator[PromptTask]

    def draw(self, count: int) -> tuple[PromptTask, ...]:
        """Tasks for the next `count` prompts; fewer if the data set has no more."""
        return tuple(islice(self.further, count))


@dataclass(frozen=True)
class Feeder:
    """Makes the tasks of a run and publishes them."""

    config: RunConfig
    run: str
    train: Problems
    held_out: Problems | None
    bus: Bus
    history: PassHistory = field(default_factory=PassHistory, kw_only=True)
    """The pass rates so far, which a curriculum draws by."""

    def tasks(self, step: int, policy: PolicyRef, teacher: PolicyRef) -> tuple[PromptTask, ...]:
        """The training tasks of a step, which `policy` samples and `teacher` scores; none after the last step."""
        if step >= self.config.loop.steps:
            return ()
        problems = enumerate(self.problems(step))
        return tuple(self._task(problem, Purpose.TRAIN, step, i, policy, teacher) for i, problem in problems)

    def problems(self, step: int) -> list[Problem]:
        """The training problems of a step, of which task i has problem i."""
        prompts, seed = self.config.sampling.prompts, self.config.loop.seed
        if self.config.data.curriculum == "pass_rate":
            known = self.history.before(step - self.config.loop.lag)  # when the tasks of the step are published
            return self.train.drawn(step, prompts, seed, known)
        return [self.train.at(position, seed) for position in range(step * prompts, (step + 1) * prompts)]

    async def complete(
        self, step: int, policy: PolicyRef, teacher: PolicyRef, stop: asyncio.Event
    ) -> tuple[PromptTask, ...]:
        """The training tasks of a step, once all are known; none if the run is told to stop before."""
        return self.tasks(step, policy, teacher)

    def follow(self, pipeline: Pipeline) -> None:
        """Learns the steps in flight and their policies."""

    def supply(self, tasks: Sequence[PromptTask]) -> StepSupply:
        """Additional prompts for the step of these tasks, none of them twice and none that the tasks have.

        The prompts come in a random order of the step. What a draw returns depends on the seed, the step and the number
        of prompts drawn before.
        """
        first, seen = tasks[0], {(task.messages, task.images) for task in tasks}
        order = _seed(self.config.loop.seed, Purpose.TRAIN, first.step, -1)
        others = (self.train.at(position, order) for position in range(len(self.train.problems)))
        unseen = (problem for problem in others if (problem.messages, problem.images) not in seen)
        further = (
            self._task(problem, Purpose.TRAIN, first.step, index, first.policy, first.teacher)
            for index, problem in enumerate(unseen, start=len(tasks))
        )
        return StepSupply(len(tasks), further)

    def eval_tasks(self, step: int, policy: PolicyRef) -> tuple[PromptTask, ...]:
        """The held-out tasks for a policy, with the same problems and seeds for every policy."""
        if self.held_out is None:
            return ()
        problems = self.held_out.problems[: self.config.eval.prompts]
        return tuple(self._task(problem, Purpose.EVAL, step, i, policy, policy) for i, problem in enumerate(problems))

    async def publish(self, tasks: Sequence[PromptTask]) -> None:
        """Publishes tasks on the rollout stream; waits while the stream is full."""
        stream = stream_of(Stage.ROLLOUT)
        while tasks and await self.bus.depth(stream) >= MAX_WAITING:
            await asyncio.sleep(0.2)
        if tasks:
            await self.bus.publish(stream, tasks)

    def _task(
        self, problem: Problem, purpose: Purpose, step: int, index: int, policy: PolicyRef, teacher: PolicyRef
    ) -> PromptTask:
        config, training = self.config, purpose is Purpose.TRAIN
        data = config.data.of(problem.source)
        asks = config.algorithm.asks_at(step) if training else ()
        return PromptTask(
            run=self.run,
            step=step,
            index=index,
            purpose=purpose,
            messages=problem.messages,
            images=problem.images,
            reference_answer=problem.answer,
            answer_kind=data.answer_kind,
            reference_solution=problem.solution,
            hint=config.data.hint,
            placement=Placement[config.data.placement.upper()],
            samples=config.sampling.samples if training else config.eval.samples,
            sampling=sampling_of(config, purpose),
            seed=_seed(config.loop.seed, purpose, step if training else 0, index),
            asks=asks,
            teach_when=config.algorithm.teach_when,
            route=FULL_ROUTE if asks else SHORT_ROUTE,
            policy=policy,
            teacher=teacher,
            base_share=config.algorithm.teacher_source.base_share if training else 0.0,
            step_delimiter=config.algorithm.reasoning_delimiter if training else "",
            reward=_reward(config, problem, purpose),
            environment=_environment(data, problem),
        )


def _reward(config: RunConfig, problem: Problem, purpose: Purpose) -> Reward:
    """The reward of a problem. Of held-out problems only the accuracy is used."""
    if purpose is Purpose.TRAIN:
        return config.reward_of(problem.source)
    return Reward(judge=config.reward.judge if config.data.environment else "")


def _environment(data: DataConfig, problem: Problem) -> Environment | None:
    if not data.environment:
        return None
    return Environment(name=data.environment, row=problem.columns, max_turns=data.max_turns)


def sampling_of(config: RunConfig, purpose: Purpose) -> Sampling:
    """The sampling parameters of a task."""
    chosen = config.sampling if purpose is Purpose.TRAIN else config.eval
    return Sampling(
        temperature=chosen.temperature,
        top_p=chosen.top_p,
        top_k=chosen.top_k,
        presence_penalty=config.eval.presence_penalty if purpose is Purpose.EVAL else 0.0,
        max_tokens=config.sampling.max_tokens,
    )


def _seed(seed: int, purpose: Purpose, step: int, index: int) -> int:
    """A seed of 48 bits; engines add the index of a sample in its group to it without overflow."""
    name = f"{seed}/{purpose.name}/{step}/{index}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:6], "big")
