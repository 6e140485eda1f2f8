"""Demonstrations for the tiny model: correct solutions, solutions with one wrong step, and hinted solutions.

Wrong steps teach the model to err in about half of its samples, so that reinforcement learning can improve it. Correct
and wrong hints teach it that a sample answer in the context predicts the steps; the contrast between two such contexts
is the credit signal of CEPO.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from cepo.messages.hints import HINT, INSTRUCTION
from cepo.tiny.task import SumProblem, apply

SLIPS = (-10, -2, -1, 1, 2, 10)


@dataclass(frozen=True)
class Mixture:
    """Probabilities of the kinds of demonstrations."""

    hinted: float = 0.4
    """The prompt has a hint."""
    slip_unhinted: float = 0.5
    """A solution without a hint has a wrong step."""
    slip_hinted: float = 0.5
    """A solution with a hint has a wrong step; the hint then names its wrong answer."""
    bare: float = 0.05
    """The prompt lacks the instruction."""


@dataclass(frozen=True)
class Demonstration:
    """A user turn and the assistant's reply."""

    prompt: str
    response: str


def solution(problem: SumProblem, slip: int = 0, slip_step: int = 2) -> tuple[str, int]:
    """The steps with their boxed answer, and the answer.

    Args:
        slip: error of step `slip_step`; later steps continue from the wrong number.
    """
    partial = problem.partial + (slip if slip_step == 1 else 0)
    answer = apply(problem.operators[1], partial, problem.third) + (slip if slip_step == 2 else 0)
    steps = (
        f"{problem.first}{problem.operators[0]}{problem.second}={partial}",
        f"{partial}{problem.operators[1]}{problem.third}={answer}",
        f"\\boxed{{{answer}}}",
    )
    return "\n".join(steps), answer


def slipped(problem: SumProblem, rng: random.Random) -> tuple[str, int]:
    """A solution with one wrong step in which no number is negative."""
    while True:
        slip, slip_step = rng.choice(SLIPS), rng.choice((1, 2))
        partial = problem.partial + (slip if slip_step == 1 else 0)
        if partial >= 0 and problem.answer + slip >= 0:
            return solution(problem, slip, slip_step)


def demonstration(question: str, problem: SumProblem, mixture: Mixture, rng: random.Random) -> Demonstration:
    """A demonstration of a kind drawn from the mixture, for a problem asked with `question`."""
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
    """Yields one demonstration per problem."""
    for problem in problems:
        yield demonstration(problem.question, problem, mixture, rng)
