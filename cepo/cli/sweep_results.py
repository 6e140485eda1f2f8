"""The results of a sweep: held-out accuracy of every run over seeds, and its paired difference to the first run.

Runs of the same seed draw the same problems in the same order and are evaluated on the same held-out problems, so a
difference within a seed leaves out what the seeds share. The interval of the mean difference is a bootstrap over seeds.
A run counts with its accuracy after the last step, never with the best of its evaluations, which would be optimistic.
"""

from __future__ import annotations

import json
import random
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

from cepo.run.folder import RunDir

RESAMPLES = 10_000
Measure = Literal["after", "training"]
Row = Mapping[str, float | None]


@dataclass(frozen=True)
class SeedResult:
    """What one run measured with one seed."""

    before: float | None
    """Held-out accuracy of the policy before the first step."""
    after: float | None
    """Held-out accuracy after the last step."""
    curve: tuple[tuple[int, int, float], ...]
    """(steps, generated tokens, held-out accuracy) of every evaluation."""
    seconds: float
    """Mean seconds of a step."""
    training: float | None = None
    """Mean accuracy of the training batches of all steps, which is the area under the curve of accuracy against steps.
    A batch is sampled before it is trained on, so in the first epoch its problems are new to the policy."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> SeedResult:
        """The result of the metrics of a run."""
        curve, tokens = [], 0
        before = rows[0].get("accuracy/eval_before") if rows else None
        if before is not None:
            curve.append((0, 0, before))
        for at, row in enumerate(rows, start=1):
            tokens += int(row.get("tokens/generated") or 0)
            if (accuracy := row.get("accuracy/eval")) is not None:
                curve.append((at, tokens, accuracy))
        after = curve[-1][2] if curve and curve[-1][0] > 0 else None
        seconds = fmean([row.get("time/step_seconds") or 0.0 for row in rows]) if rows else 0.0
        batches = [accuracy for row in rows if (accuracy := row.get("accuracy/train")) is not None]
        return cls(before, after, tuple(curve), seconds, fmean(batches) if batches else None)


@dataclass(frozen=True)
class Difference:
    """The mean difference to the first run over the seeds of both, and its 95 % bootstrap interval."""

    mean: float
    low: float | None
    """None with fewer than two seeds."""
    high: float | None
    seeds: int


@dataclass(frozen=True)
class RunResult:
    """One run of a sweep over its seeds."""

    name: str
    file: str
    set: tuple[str, ...]
    seeds: dict[int, SeedResult] = field(default_factory=dict)
    mean: float | None = None
    """Mean accuracy after the last step."""
    deviation: float | None = None
    """Its standard deviation over seeds, unbiased; None with fewer than two."""
    difference: Difference | None = None
    """None for the first run."""
    training_difference: Difference | None = None
    """The same for the mean accuracy of the training batches."""


def mean_interval(values: Sequence[float], *, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean: percentiles of the means of samples drawn with replacement.

    The draws are a function of the number of values, so equal values give equal intervals.
    """
    draws = random.Random(len(values))
    means = sorted(fmean(draws.choices(values, k=len(values))) for _ in range(resamples))
    return means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1]


def paired(
    results: Mapping[int, SeedResult], first: Mapping[int, SeedResult], measure: Measure = "after"
) -> Difference | None:
    """The difference of two runs within each seed that both have finished; None without such a seed."""
    values = [
        (getattr(results[seed], measure), getattr(first[seed], measure))
        for seed in sorted(results.keys() & first.keys())
        if results[seed].after is not None and first[seed].after is not None
    ]
    gaps = [value - base for value, base in values if value is not None and base is not None]
    if not gaps:
        return None
    low, high = mean_interval(gaps) if len(gaps) > 1 else (None, None)
    return Difference(fmean(gaps), low, high, len(gaps))


def summarised(run: RunResult, first: RunResult | None) -> RunResult:
    """The run with its mean, its deviation, and its difference to the first run."""
    finals = [result.after for result in run.seeds.values() if result.after is not None]
    return RunResult(
        run.name,
        run.file,
        run.set,
        run.seeds,
        fmean(finals) if finals else None,
        stdev(finals) if len(finals) > 1 else None,
        paired(run.seeds, first.seeds) if first is not None else None,
        paired(run.seeds, first.seeds, "training") if first is not None else None,
    )


def commit() -> str:
    """The commit of the source tree, with "+" if it has changes; otherwise the package's version."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True)
    except OSError:
        return f"cepo {version('cepo')}"
    if head.returncode:
        return f"cepo {version('cepo')}"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def as_json(name: str, runs: Sequence[RunResult], steps: Mapping[str, int]) -> str:
    """The content of results.json."""
    return json.dumps(
        {
            "sweep": name,
            "commit": commit(),
            "runs": [asdict(run) | {"steps": steps[run.name]} for run in runs],
        },
        indent=1,
    )


def as_markdown(name: str, runs: Sequence[RunResult], steps: Mapping[str, int]) -> str:
    """The content of results.md: the table, and what it was measured with."""
    seeds = sorted({seed for run in runs for seed in run.seeds})
    lines = [
        f"# {name}",
        "",
        f"Commit {commit()}; seeds {', '.join(map(str, seeds))}. Accuracy is held-out accuracy after the last step: "
        "mean and standard deviation over seeds. The difference is to the first run with the same seed, with its 95 % "
        "bootstrap interval over seeds. Training is the mean accuracy of the training batches of all steps.",
        "",
        "| run | before | after | difference | training | difference | seeds | steps | generated tokens | s / step |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        cells = row_cells(run)
        tokens = (
            fmean([result.curve[-1][1] if result.curve else 0 for result in run.seeds.values()]) if run.seeds else 0
        )
        lines.append(
            f"| {run.name} | {cells[0]} | {cells[1]} | {cells[2]} | {training_cells(run)} | {len(run.seeds)} | "
            f"{steps[run.name]} | {tokens:,.0f} | {cells[3]} |"
        )
    lines += ["", "| run | run file | overrides |", "|---|---|---|"]
    lines += [f"| {run.name} | `{run.file}` | {' '.join(f'`{key}`' for key in run.set) or '-'} |" for run in runs]
    return "\n".join([*lines, ""])


def row_cells(run: RunResult) -> tuple[str, str, str, str]:
    """A run's accuracy before and after, its difference to the first run, and its seconds a step, as text."""
    befores = [result.before for result in run.seeds.values() if result.before is not None]
    before = f"{fmean(befores):.2%}" if befores else "-"
    after = "-" if run.mean is None else f"{run.mean:.2%}"
    if run.deviation is not None:
        after += f" ± {run.deviation:.2%}"
    seconds = fmean([result.seconds for result in run.seeds.values()]) if run.seeds else 0.0
    return before, after, points(run.difference), f"{seconds:.1f}"


def training_cells(run: RunResult) -> str:
    """A run's mean accuracy of the training batches and its difference to the first run, as two cells."""
    means = [result.training for result in run.seeds.values() if result.training is not None]
    return f"{fmean(means):.2%} | {points(run.training_difference)}" if means else "- | -"


def points(difference: Difference | None) -> str:
    """A difference in percentage points with its interval, such as "+2.33 points [+2.00, +3.00]"; "-" without one."""
    if difference is None:
        return "-"
    text = f"{100 * difference.mean:+.2f} points"
    if difference.low is not None and difference.high is not None:
        text += f" [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
    return text


def seed_folder(folder: Path, name: str, seed: int | None) -> RunDir:
    """The folder of a run in a sweep's folder, such as cepo/cepo-seed-3.

    The folder's name is the run's id, and runs that share their services need ids of their own.
    """
    return RunDir(folder / name if seed is None else folder / name / f"{name}-seed-{seed}")


def measured(folder: Path, name: str, seeds: Sequence[int | None]) -> dict[int, SeedResult]:
    """The results of the seeds of a run that have started. None stands for the seed of the run file."""
    results = {}
    for seed in seeds:
        run = seed_folder(folder, name, seed)
        if rows := run.rows():
            results[_own_seed(run) if seed is None else seed] = SeedResult.of(rows)
    return results


def _own_seed(run: RunDir) -> int:
    try:
        return int(tomllib.loads(run.config.read_text())["loop"]["seed"])
    except (OSError, KeyError):
        return 0
