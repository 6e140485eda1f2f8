"""Two run folders for a comparison, with held-out groups of the same problems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cepo.run.folder import RunDir
from cepo.run.rollouts import Rollouts
from tests.helpers.runs import make_metrics, make_run, write_groups

PROBLEMS = 40
FLIPPED = {7: True, 8: True, 9: False}
"""The problems that the second run solves and the first does not, or the other way round."""


def compared_runs(folder: Path) -> tuple[RunDir, RunDir]:
    """A GRPO run, and a CEPO run that solves two held-out problems more and one less."""
    made = []
    for name, gain in (("grpo", 0.0), ("cepo", 0.1)):
        run = make_run(folder / name, 0, f"algorithm.name={name}")
        for step in range(6):
            row = make_metrics(step)
            run.append({**row, "reward/mean": row["reward/mean"] + gain, "tokens/generated": 1000})
        write_groups(run, 5)
        second = name == "cepo"
        groups = [
            held_out_group(at, [FLIPPED[at] == second if at in FLIPPED else at % 2 == 0] * 2) for at in range(PROBLEMS)
        ]
        Rollouts(run.rollouts).write("held-out", 6, groups)
        made.append(run)
    return made[0], made[1]


def held_out_group(at: int, right: Sequence[bool]) -> dict[str, Any]:
    """The responses to the problem `at + 1`."""
    answer = str(at + 1)
    samples = [
        {
            "text": f"\\boxed{{{answer if each else '0'}}}",
            "token_ids": [1, 2],
            "tokens": ["\\boxed{", f"{answer if each else '0'}}}"],
            "outcome": "correct" if each else "wrong",
            "extracted": answer if each else "0",
            "reward": float(each),
            "reason": "",
            "advantage": [],
            "evidence": [],
        }
        for each in right
    ]
    turns = [{"role": "user", "content": f"{at} + 1 = ?"}]
    return {"group": f"eval/{at}", "prompt": turns, "images": [], "answer": answer, "samples": samples}
