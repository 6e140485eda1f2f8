"""Problems of the tiny task: sums and differences of three two-digit numbers.

A hash of the question decides whether a problem is held out, so the split depends neither on the seed nor on the order
of generation. `python -m cepo.tiny.task` writes the two data files.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cepo.net.files import make_folder, replace_file

DATA = Path(__file__).parent / "data"
HELD_OUT_SHARE = 8  # one problem in eight is held out


@dataclass(frozen=True)
class SumProblem:
    """`first (+|-) second (+|-) third`; no partial result is negative."""

    first: int
    second: int
    third: int
    operators: str

    @property
    def partial(self) -> int:
        """Result of the first step."""
        return apply(self.operators[0], self.first, self.second)

    @property
    def answer(self) -> int:
        """Result of the second step."""
        return apply(self.operators[1], self.partial, self.third)

    @property
    def question(self) -> str:
        """The question as the user asks it, such as "23 + 45 - 17 = ?"."""
        return f"{self.first} {self.operators[0]} {self.second} {self.operators[1]} {self.third} = ?"

    @property
    def held_out(self) -> bool:
        """Whether the problem must not be trained on."""
        return hashlib.sha256(self.question.encode()).digest()[0] % HELD_OUT_SHARE == 0


def apply(operator: str, left: int, right: int) -> int:
    """One step of arithmetic."""
    return left + right if operator == "+" else left - right


def problems(seed: int, *, held_out: bool) -> Iterator[SumProblem]:
    """Yields problems of one split without end and without repeats; the same seed gives the same problems."""
    rng = random.Random(seed)
    yielded: set[SumProblem] = set()
    while True:
        first, second, third = (rng.randint(10, 99) for _ in range(3))
        problem = SumProblem(first, second, third, rng.choice("+-") + rng.choice("+-"))
        valid = problem.partial >= 0 and problem.answer >= 0
        if valid and problem.held_out == held_out and problem not in yielded:
            yielded.add(problem)
            yield problem


def write(path: Path, rows: Iterator[SumProblem]) -> None:
    """Writes problems as JSON lines with `question` and `answer`."""
    lines = (json.dumps({"question": row.question, "answer": str(row.answer)}) + "\n" for row in rows)
    replace_file(path, "".join(lines))


def main() -> None:
    """Writes the training and the held-out problems."""
    make_folder(DATA)
    write(DATA / "train.jsonl", islice(problems(0, held_out=False), 2048))
    write(DATA / "eval.jsonl", islice(problems(1, held_out=True), 256))


if __name__ == "__main__":
    main()
