"""Curves of a sweep: held-out accuracy against steps and against generated tokens, with a band over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from statistics import fmean
from typing import Any

from cepo.cli.evaluation.plot import COLOURS
from cepo.cli.sweep_results import RunResult, mean_interval
from cepo.errors import UserError
from cepo.net.files import replace_file

AXES = (("training steps", 0), ("generated tokens", 1))
"""Label and index in a curve's points."""


def bands(run: RunResult, axis: int) -> list[tuple[float, float, float, float]]:
    """(x, mean, low, high) at every evaluation that all seeds of the run have; x is the mean over seeds."""
    curves = [result.curve for result in run.seeds.values() if result.curve]
    points = []
    for same in zip(*curves, strict=False):
        values = [accuracy for *_, accuracy in same]
        low, high = mean_interval(values, resamples=2000) if len(values) > 1 else (values[0], values[0])
        points.append((fmean([point[axis] for point in same]), fmean(values), low, high))
    return points


def draw(title: str, runs: Sequence[RunResult], path: Path) -> list[Path]:
    """Writes the plot as PATH.png and PATH.svg; returns both.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter
    except ImportError as error:
        raise UserError('the plot needs matplotlib: pip install "cepo[plots]"') from error
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    for panel, (label, axis) in zip(panels, AXES, strict=True):
        for number, run in enumerate(runs):
            points = bands(run, axis)
            if not points:
                continue
            x, mean, low, high = zip(*points, strict=True)
            colour = COLOURS[number % len(COLOURS)]
            style = "-" if number < len(COLOURS) else "--"
            panel.plot(x, mean, style, color=colour, label=run.name)
            panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.set_xlabel(label)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("held-out accuracy")
    panels[0].yaxis.set_major_formatter(PercentFormatter(xmax=1))
    panels[1].legend(loc="lower right", fontsize="small")
    seeds = max((len(run.seeds) for run in runs), default=0)
    figure.suptitle(f"{title}: mean over {seeds} seeds, band: 95 % bootstrap interval")
    written = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file in written:
        scratch = BytesIO()
        figure.savefig(scratch, dpi=150, format=file.suffix[1:])
        replace_file(file, scratch.getvalue())
    return written
