"""The role of every token of a solution of the lock task, and the credit by role: `python -m cepo.tiny.lock_roles RUN`.

The problem says which digit is the decision, so no annotation is needed.

Example, with the decision C: the roles of the last two lines of a solution are

    Now roll C:56408\\n      words words copied ... copied; the 4 is the decision
    \\boxed{56408}           words answer answer answer answer answer words
"""

import gzip
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cepo.messages.vocabulary import DEAD_BAND
from cepo.tiny.lock import DIALS, LockProblem

ROLES = ("decision", "carried", "turn", "copied", "answer", "words")
LINE = re.compile(r"([A-E]):(\d{5})")
BOX = re.compile(r"\{(\d{5})\}")


def parse(question: str) -> LockProblem:
    """The problem of a question such as "Lock 69024. C up 4, A down 1, D as least, B down 3, E up 4."."""
    start, turns = re.fullmatch(r"Lock (\d{5})\. (.*)\.", question).groups()  # type: ignore[union-attr]
    split = (turn.split(" ", 1) for turn in turns.split(", "))
    return LockProblem(start, tuple((DIALS.index(dial), turn) for dial, turn in split))


def roles(problem: LockProblem, tokens: Sequence[str]) -> list[str]:
    """The role of each token: of its first character, as each digit is a token.

    decision: the digit that the decision sets, in the line of its turn; carried: its copies in later lines; turn: the
    digit that another turn sets; copied: the other digits of the lines; answer: the digits of the final answer.
    """
    text = "".join(tokens)
    of_character = ["words"] * len(text)
    decided = False
    for line in LINE.finditer(text):
        turned = DIALS.index(line[1])
        for dial in range(len(DIALS)):
            role = "turn" if dial == turned else "copied"
            if dial == problem.decision:
                role = "decision" if dial == turned else "carried" if decided else "copied"
            of_character[line.start(2) + dial] = role
        decided |= turned == problem.decision
    if box := BOX.search(text):
        of_character[box.start(1) : box.end(1)] = ["answer"] * len(DIALS)
    starts = [len("".join(tokens[:at])) for at in range(len(tokens))]
    return [of_character[start] for start in starts]


def wrong_decision(problem: LockProblem, text: str) -> bool:
    """Whether a response is wrong by its decision alone."""
    box = BOX.search(text)
    digits = problem.digits
    if box is None:
        return False
    return all((box[1][dial] != digits[dial]) == (dial == problem.decision) for dial in digits)


def stored_groups(file: Path) -> list[dict[str, Any]]:
    """The groups of a file of rollouts, or of the compressed file of that name."""
    data = file.read_bytes() if file.is_file() else gzip.decompress(file.with_name(f"{file.name}.gz").read_bytes())
    return [json.loads(line) for line in data.splitlines()]


def credits(run: Path, step: int) -> Iterator[tuple[LockProblem, dict[str, Any], list[float]]]:
    """The problem, the stored sample and the delta of every measured response of a step."""
    for group in stored_groups(run / "rollouts" / f"step-{step:06d}.jsonl"):
        problem = parse(group["prompt"][-1]["content"])
        for sample in group["samples"]:
            if len(sample["evidence"]) < 2:
                continue
            numerator, denominator = (evidence["logps"] for evidence in sample["evidence"][:2])
            if numerator and denominator:
                yield problem, sample, [p - q for p, q in zip(numerator, denominator, strict=True)]


def summary(run: Path, step: int) -> dict[str, float]:
    """Mean |delta| and share of its sum by role, over responses that are wrong by their decision alone.

    Also `blamed`: the share of these whose decision has a delta below the dead band.
    """
    sizes: dict[str, list[float]] = defaultdict(list)
    blamed = []
    for problem, sample, delta in credits(run, step):
        if not wrong_decision(problem, sample["text"]):
            continue
        for role, value in zip(roles(problem, sample["tokens"]), delta, strict=True):
            sizes[role].append(abs(value))
            if role == "decision":
                blamed.append(value < -DEAD_BAND)
    total = sum(map(sum, sizes.values())) or 1.0
    shares = {f"{role} share": sum(sizes[role]) / total for role in ROLES}
    means = {f"{role} mean": sum(sizes[role]) / max(1, len(sizes[role])) for role in ROLES}
    return {"responses": float(len(blamed)), "blamed": sum(blamed) / max(1, len(blamed)), **shares, **means}


def main() -> None:
    """Prints the credit by role of the first step of each run folder."""
    for run in map(Path, sys.argv[1:]):
        sys.stdout.write(
            f"{run.name}: {json.dumps({key: round(value, 3) for key, value in summary(run, 0).items()})}\n"
        )


if __name__ == "__main__":
    main()
