"""Demonstrations the tiny model learns from: right solutions, solutions with one slip, and hinted ones.

Slips teach the model to err about half of the time when sampled, which leaves reinforcement learning something to
gain. Hints, right and wrong, teach it that a sample answer in the context tells where the steps will lead; the
contrast between two such contexts is the credit signal of CEPO.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from cepo.messages.hints import HINT, INSTRUCTION
from cepo.tiny.task import SumProblem, apply

SLIPS = (-10, -2, -1, 1, 2, 10)


@dataclass(frozen=True)
class Mixture:
    """Shares of each kind of demonstration; every share is a probability."""

    hinted: float = 0.4
    slip_unhinted: float = 0.5
    slip_hinted: float = 0.5
    bare: float = 0.05


@dataclass(frozen=True)
class Demonstration:
    """One user turn and the assistant's reply to it."""

    prompt: str
    response: str


def solution(problem: SumProblem, slip: int = 0, slip_step: int = 2) -> tuple[str, int]:
    """Steps that end in a boxed answer, and that answer; step `slip_step` is off by `slip`, and the rest follows."""
    partial = problem.partial + (slip if slip_step == 1 else 0)
    answer = apply(problem.operators[1], partial, problem.third) + (slip if slip_step == 2 else 0)
    steps = (
        f"{problem.first}{problem.operators[0]}{problem.second}={partial}",
        f"{partial}{problem.operators[1]}{problem.third}={answer}",
        f"\\boxed{{{answer}}}",
    )
    return "\n".join(steps), answer


def slipped(problem: SumProblem, rng: random.Random) -> tuple[str, int]:
    """A solution with one wrong step, every number of it still non-negative."""
    while True:
        slip, slip_step = rng.choice(SLIPS), rng.choice((1, 2))
        partial = problem.partial + (slip if slip_step == 1 else 0)
        if partial >= 0 and problem.answer + slip >= 0:
            return solution(problem, slip, slip_step)


def demonstration(question: str, problem: SumProblem, mixture: Mixture, rng: random.Random) -> Demonstration:
    """A solution of a problem that is asked in these words, of a kind drawn from the mixture."""
    hinted = rng.random() < mixture.hinted
    slips = rng.random() < (mixture.slip_hinted if hinted else mixture.slip_unhinted)
    response, answer = slipped(problem, rng) if slips else solution(problem)
    lines = [question]
    if rng.random() >= mixture.bare:
        lines.append(INSTRUCTION)
    if hinted:
        lines.append(HINT.format(answer=answer))
    return Demonstration("\n".join(lines), response)


def demonstrations(problems: Iterator[SumProblem], mixture: Mixture, rng: random.Random) -> Iterator[Demonstration]:
    """One demonstration per problem."""
    for problem in problems:
        yield demonstration(problem.question, problem, mixture, rng)
