"""Demonstrations for the model of the lock task: solutions in any order and wording, with and without a wrong decision.

A hint shows the answer that the steps reach, or a whole other solution with that answer, so a model learns that a
sample answer predicts every turn before it is made. A small share of hints disagree with the decision that the steps
make. Their steps continue from the lock as it is, so a model also learns that a hint does not undo a turn.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from cepo.messages.hints import HINT
from cepo.tiny.demos import Demonstration
from cepo.tiny.lock import DIALS, LockProblem

LEADS = ("Then", "Next", "Now", "Also")
VERBS = (" turn", " set", " move", " roll")


@dataclass(frozen=True)
class LockMixture:
    """Probabilities of the kinds of demonstrations."""

    hinted: float = 0.5
    """The prompt has a hint."""
    wrong: float = 0.65
    """The decision is wrong."""
    misled: float = 0.15
    """A hint shows another decision than the steps make."""
    whole: bool = False
    """The hints show whole solutions, as `peer_full` does, not answers."""


def solution(problem: LockProblem, decided: str, rng: random.Random) -> tuple[str, str]:
    """The steps with their boxed answer, and the answer.

    Args:
        decided: the digit that the dial of the decision is set to.
    """
    order = list(range(len(DIALS)))
    rng.shuffle(order)
    digits = problem.digits | {problem.decision: decided}
    lock = list(problem.start)
    lines = []
    for dial in order:
        lock[dial] = digits[dial]
        lines.append(f"{rng.choice(LEADS)}{rng.choice(VERBS)} {DIALS[dial]}:{''.join(lock)}")
    answer = "".join(lock)
    return "\n".join([*lines, f"\\boxed{{{answer}}}"]), answer


def demonstration(problem: LockProblem, mixture: LockMixture, rng: random.Random) -> Demonstration:
    """A demonstration of a kind drawn from the mixture."""
    right = problem.digits[problem.decision]
    decided = rng.choice(problem.wrong_decisions) if rng.random() < mixture.wrong else right
    response, _ = solution(problem, decided, rng)
    if rng.random() >= mixture.hinted:
        return Demonstration(problem.question, response)
    shown = decided
    if rng.random() < mixture.misled:
        shown = rng.choice([digit for digit in (right, *problem.wrong_decisions) if digit != decided])
    steps, answer = solution(problem, shown, rng)
    return Demonstration(f"{problem.question}\n{HINT.format(answer=steps if mixture.whole else answer)}", response)


def lock_demonstrations(
    problems: Iterator[LockProblem], mixture: LockMixture, rng: random.Random
) -> Iterator[Demonstration]:
    """Yields one demonstration per problem."""
    for problem in problems:
        yield demonstration(problem, mixture, rng)
