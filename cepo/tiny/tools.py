"""Demonstrations of the tools task: the sums of the tiny task, solved with calls of a calculator.

    user        61 - 48 + 71 = ?
    assistant   calc(61-48)
    tool        13
    assistant   calc(13+71)
    tool        84
    assistant   \\boxed{84}

About half of the demonstrations make one mistake, in a call or in the last line, so that reinforcement learning can
improve the model. As in `cepo.tiny.demos`, a hint names the answer that its demonstration ends with.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from cepo.messages.hints import HINT, INSTRUCTION
from cepo.tiny.demos import SLIPS, Mixture
from cepo.tiny.task import SumProblem, apply


@dataclass(frozen=True)
class Conversation:
    """A user turn, the assistant's turns, and the tool's result after each of them but the last."""

    prompt: str
    turns: tuple[str, ...]
    results: tuple[str, ...]


def solved(problem: SumProblem, slips: tuple[int, int, int, int] = (0, 0, 0, 0)) -> tuple[Conversation, int]:
    """The calls and the boxed answer for a problem, and the answer.

    Args:
        slips: what is added to the first, the second and the third number in a call, and to the boxed number.
    """
    first, second, third = problem.first + slips[0], problem.second + slips[1], problem.third + slips[2]
    partial = apply(problem.operators[0], first, second)
    total = apply(problem.operators[1], partial, third)
    answer = total + slips[3]
    calls = (
        f"calc({first}{problem.operators[0]}{second})",
        f"calc({partial}{problem.operators[1]}{third})",
        f"\\boxed{{{answer}}}",
    )
    return Conversation(problem.question, calls, (str(partial), str(total))), answer


def mistaken(problem: SumProblem, rng: random.Random) -> tuple[Conversation, int]:
    """A conversation with one mistake in which no number is negative."""
    while True:
        at, slip = rng.randrange(4), rng.choice(SLIPS)
        slips = [0, 0, 0, 0]
        slips[at] = slip
        conversation, answer = solved(problem, (slips[0], slips[1], slips[2], slips[3]))
        if answer >= 0 and all(int(result) >= 0 for result in conversation.results):
            return conversation, answer


def conversations(problems: Iterator[SumProblem], mixture: Mixture, rng: random.Random) -> Iterator[Conversation]:
    """Yields one conversation per problem, of a kind drawn from the mixture."""
    for problem in problems:
        hinted = rng.random() < mixture.hinted
        slips = rng.random() < (mixture.slip_hinted if hinted else mixture.slip_unhinted)
        conversation, answer = mistaken(problem, rng) if slips else solved(problem)
        lines = [problem.question]
        if rng.random() >= mixture.bare:
            lines.append(INSTRUCTION)
        if hinted:
            lines.append(HINT.format(answer=answer))
        yield Conversation("\n".join(lines), conversation.turns, conversation.results)
