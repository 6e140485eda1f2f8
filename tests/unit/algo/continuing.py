"""A toy policy that continues prefixes, and the rounds of follow-up tasks that the trainer makes in a step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cepo.algo.base import Algorithm
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import (
    Completion,
    EvidencedGroup,
    FinishReason,
    Outcome,
    PromptTask,
    RolloutGroup,
    Sampling,
    ScoredGroup,
    Verdict,
)
from tests.helpers.factories import make_proof, make_task

END = 2
LONGEST = 24


@dataclass(frozen=True)
class Prompts:
    """A supply that has no prompts left."""

    prompts: int

    def draw(self, count: int) -> tuple[PromptTask, ...]:
        return ()


def judged(token_ids: Sequence[int], unjudged: float = 0.0) -> Verdict:
    """Returns a verdict that depends only on the response; a share `unjudged` of responses gets a timeout."""
    draw = random.Random(str(tuple(token_ids)))
    if draw.random() < unjudged:
        return Verdict(outcome=Outcome.TIMEOUT, reward=0.0, accuracy=0.0)
    right = float(draw.random() < 0.5)
    return Verdict(outcome=Outcome.CORRECT if right else Outcome.WRONG, reward=right, accuracy=right)


def sampled(task: PromptTask, unjudged: float = 0.0) -> EvidencedGroup:
    """Samples a group that depends only on its task. Token 3 begins a step; a response ends at END or at max_tokens."""
    draw = random.Random(f"{task.seed}/{tuple(task.prefix)}")
    completions = tuple(_completion(task, draw) for _ in range(task.samples))
    rollout = RolloutGroup(
        task=task, prompt_token_ids=Int32Array.of((7, 8)), completions=completions, proof=make_proof()
    )
    verdicts = tuple(judged(c.token_ids, unjudged) for c in completions)
    return EvidencedGroup(scored=ScoredGroup(rollout=rollout, verdicts=verdicts))


def _completion(task: PromptTask, draw: random.Random) -> Completion:
    ids, logps = list(task.prefix), list[float]()
    while len(ids) < task.sampling.max_tokens and (not logps or ids[-1] != END):
        ids.append(draw.choice([END, 3, 3, *range(4, 12)]))
        logps.append(-draw.choice([1, 2, 64, 128]) / 128)
    ends = [at for at, token in enumerate(ids) if token == 3 and at > 0] if task.step_delimiter else []
    return Completion(
        token_ids=Int32Array.of(ids),
        logps=Float32Array.of(logps),
        text="",
        finish_reason=FinishReason.STOP if ids[-1] == END else FinishReason.LENGTH,
        step_ends=(*ends, len(ids)) if task.step_delimiter else (),
    )


def prompts(algorithm: Algorithm, count: int = 3, samples: int = 4, seed: int = 0) -> list[PromptTask]:
    """Returns the tasks that begin a step, one per prompt."""
    shared: dict[str, Any] = {"samples": samples, "sampling": Sampling(max_tokens=LONGEST), "asks": ()}
    return [
        make_task(index=i, seed=1000 * seed + i, step_delimiter=algorithm.reasoning_delimiter, **shared)
        for i in range(count)
    ]


def step(
    algorithm: Algorithm, tasks: Sequence[PromptTask], unjudged: float = 0.0
) -> tuple[list[EvidencedGroup], list[PromptTask]]:
    """Returns all groups of a step, and its follow-up tasks in the order in which they were sent."""
    groups, sent = [sampled(task) for task in tasks], []
    supply = Prompts(len(tasks))
    had = {task.group_id for task in tasks}
    while more := [task for task in algorithm.follow_up(groups, 0, supply) if task.group_id not in had]:
        had |= {task.group_id for task in more}
        sent += more
        groups += [sampled(task, unjudged) for task in more]
    return groups, sent
