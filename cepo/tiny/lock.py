"""Problems of the tiny chain task: a lock of five dials is turned five times, and one turn is a decision.

Four turns say how far to turn a dial. The fifth, the decision, says which digit of the start to set its dial to: the
largest, the smallest, or the digit of another dial. The turns touch different dials, so they may be made in any order,
and every line of a solution copies the whole lock. A wrong decision is therefore carried to the answer, whose digits
say how each dial was turned. The data files have the first two kinds of decision alone: the model guesses the third.

Example: the lock shows 27413, "A up 3, B down 2, C to most, D up 4, E to 5" has the answer 55755.

`python -m cepo.tiny.lock` writes the two data files.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cepo.net.files import make_folder, replace_file
from cepo.tiny.task import DATA, HELD_OUT_SHARE

DIALS = "ABCDE"
LARGEST, SMALLEST = "most", "least"


@dataclass(frozen=True)
class LockProblem:
    """A start, and a turn of each dial in the order of the question."""

    start: str
    """Five different digits, such as "27413"."""
    turns: tuple[tuple[int, str], ...]
    """Index of the dial and its turn: "up 3", "down 2", or the decision: "as most", "as least", "as B"."""

    @property
    def decision(self) -> int:
        """Index of the dial whose turn is the decision."""
        return next(dial for dial, turn in self.turns if turn.startswith("as "))

    @property
    def names_extreme(self) -> bool:
        """Whether the decision names the largest or the smallest digit, not another dial."""
        return dict(self.turns)[self.decision].split()[1] in (LARGEST, SMALLEST)

    @property
    def digits(self) -> dict[int, str]:
        """The digit of every dial after its turn."""
        return {dial: self._turned(dial, turn) for dial, turn in self.turns}

    @property
    def answer(self) -> str:
        """The lock after all turns."""
        digits = self.digits
        return "".join(digits[dial] for dial in range(len(DIALS)))

    @property
    def wrong_decisions(self) -> tuple[str, ...]:
        """The digits that the dial of the decision is set to by mistake: the other digits of the start."""
        right, own = self.digits[self.decision], self.start[self.decision]
        return tuple(digit for digit in self.start if digit not in (right, own))

    @property
    def question(self) -> str:
        """The question as the user asks it, such as "Lock 27413. B down 2, C as most, A up 3, ..."."""
        return f"Lock {self.start}. " + ", ".join(f"{DIALS[dial]} {turn}" for dial, turn in self.turns) + "."

    @property
    def held_out(self) -> bool:
        """Whether the problem must not be trained on."""
        return hashlib.sha256(self.question.encode()).digest()[0] % HELD_OUT_SHARE == 0

    def _turned(self, dial: int, turn: str) -> str:
        way, value = turn.split()
        if way == "as":
            extremes = {LARGEST: max(self.start), SMALLEST: min(self.start)}
            return extremes[value] if value in extremes else self.start[DIALS.index(value)]
        return str(int(self.start[dial]) + (int(value) if way == "up" else -int(value)))


def locks(seed: int, *, held_out: bool) -> Iterator[LockProblem]:
    """Yields problems of one split without end and without repeats; the same seed gives the same problems."""
    rng = random.Random(seed)
    yielded: set[LockProblem] = set()
    while True:
        problem = _random_lock(rng)
        if problem.held_out == held_out and problem not in yielded:
            yielded.add(problem)
            yield problem


def _random_lock(rng: random.Random) -> LockProblem:
    start = "".join(rng.sample("0123456789", len(DIALS)))
    decision = rng.randrange(len(DIALS))
    turns = []
    for dial, digit in enumerate(start):
        if dial == decision:
            others = [DIALS[other] for other in range(len(DIALS)) if other != dial]
            kinds = [rng.choice(others)] + [LARGEST] * (digit != max(start)) + [SMALLEST] * (digit != min(start))
            turns.append((dial, f"as {rng.choice(kinds)}"))
        else:
            ways = [f"up {n}" for n in range(1, 5) if int(digit) + n < 10]
            ways += [f"down {n}" for n in range(1, 5) if int(digit) - n >= 0]
            turns.append((dial, rng.choice(ways)))
    rng.shuffle(turns)
    return LockProblem(start, tuple(turns))


def write(path: Path, rows: Iterator[LockProblem]) -> None:
    """Writes problems as JSON lines with `question` and `answer`."""
    lines = (json.dumps({"question": row.question, "answer": row.answer}) + "\n" for row in rows)
    replace_file(path, "".join(lines))


def extremes(seed: int, *, held_out: bool) -> Iterator[LockProblem]:
    """Yields the problems of the data files: their decision names an extreme, which the model has partly learned."""
    return (problem for problem in locks(seed, held_out=held_out) if problem.names_extreme)


def main() -> None:
    """Writes the training and the held-out problems."""
    make_folder(DATA)
    write(DATA / "lock_train.jsonl", islice(extremes(0, held_out=False), 2048))
    write(DATA / "lock_eval.jsonl", islice(extremes(1, held_out=True), 256))


if __name__ == "__main__":
    main()
