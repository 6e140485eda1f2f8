"""The output of `cepo train`: a live table on a terminal, otherwise a line per step, and the gain at the end."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import join, quote
from statistics import median
from typing import TYPE_CHECKING, Self

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cepo.net.connections import shown
from cepo.run.best import best_of, plateaued
from cepo.run.folder import RunDir
from cepo.run.lines import Lines, Row

if TYPE_CHECKING:
    from cepo.data.problems import Problems
    from cepo.run.config import RunConfig
    from cepo.run.resuming import Change

PROGRAM = sys.argv[0] if Path(sys.argv[0]).name == "cepo" else "python -m cepo"
ROWS_SHOWN = 12
CUT_FRACTION = 0.5
"""The share of truncated responses from which they explain a run without a reward."""
TRUNCATED = "cut short"
"""The name of the column of responses cut at `sampling.max_tokens`; a line without any leaves it out."""
CREDIT = ("lambda", "delta>0", "delta<0", "clipped", "teacher")
"""The columns of methods that measure a response in further contexts."""
COLUMNS = (
    ("step", "step", "{:.0f}"),
    ("reward", "reward/mean", "{:.3f}"),
    ("accuracy", "accuracy/train", "{:.1%}"),
    ("held out", "accuracy/eval", "{:.1%}"),
    ("lambda", "credit/lambda", "{:.2f}"),
    ("delta>0", "credit/delta_pos_fraction", "{:.0%}"),
    ("delta<0", "credit/delta_neg_fraction", "{:.0%}"),
    ("clipped", "credit/clip_fraction", "{:.0%}"),
    (TRUNCATED, "length/truncated_fraction", "{:.0%}"),
    ("failed", "groups/failed", "{:.0f}"),
    ("rollout", "time/rollout_seconds", "{:.1f}s"),
    ("teacher", "time/teacher_seconds", "{:.1f}s"),
    ("train", "time/train_seconds", "{:.1f}s"),
    ("step time", "time/step_seconds", "{:.1f}s"),
)


class ProgressDisplay:
    """Shows a run's steps from metrics.jsonl, and the trainer's current phase from its status."""

    def __init__(self, config: RunConfig, folder: RunDir, redis: str = "") -> None:
        """Shows nothing yet.

        Args:
            redis: the Redis that the user gave, for the command that resumes the run.
        """
        given = ["--redis", shown(redis)] if redis else []
        self.resume_command = f"{PROGRAM} {join(['resume', str(folder.path), *given])}"
        """Resumes the run with the values that it has. A password in the address of Redis is left out."""
        self._config = config
        self._folder = folder
        self._metrics = Lines(folder.metrics)
        self._console = Console(highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._task = self._bar.add_task("starting", total=config.loop.steps, left="")
        self._live: Live | None = None
        self._rows: list[Row] = []
        self._draining = False
        self._said: set[str] = set()
        """What is printed once: the address of the page, the accuracy before the first step, the trainer's notes."""
        self._columns = [each for each in COLUMNS if config.algorithm.asks or each[0] not in CREDIT]

    def checked(
        self, train: Problems, held_out: Problems | None, notes: Sequence[str], changed: Sequence[Change] = ()
    ) -> None:
        """Prints the data that the run trains on, the notes of the checks, and the keys that a resume changes."""
        config = self._config
        dropped = len(train.dropped) + (len(held_out.dropped) if held_out else 0)
        evaluated = min(len(held_out.problems), config.eval.prompts) if held_out else 0
        self._console.print(
            f"{config.algorithm.name} on {config.model.path}: {len(train.problems)} problems, {evaluated} held out"
            + (f", {dropped} dropped" if dropped else "")
        )
        self._console.print(f"{train.columns}", markup=False, soft_wrap=True)
        changes = [f"changed: {', '.join(map(str, changed))}"] if changed else []
        for note in (*notes, *changes):
            self._console.print(f"  {note}", markup=False, soft_wrap=True)
        self._console.print(f"run folder {self._folder.path}", soft_wrap=True)

    def __enter__(self) -> Self:
        self._rows = self._metrics.refresh()
        if self._console.file.isatty():  # a notebook sets FORCE_COLOR, which makes a pipe count as a terminal
            self._live = Live(self._view(), console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.update(self._view())
            self._live.stop()
        self._show_new_rows()

    def draining(self) -> None:
        """Prints that the run ends after the current step."""
        self._draining = True
        text = "draining: finishing and saving the current step; press Ctrl-C again to stop at once"
        self._console.print(text, soft_wrap=True)

    def poll(self, trainer: httpx.Client) -> None:
        """Reads the trainer's status and shows the phase and the new steps."""
        try:
            status = trainer.get("/v1/status").json()
            phase = f"step {status['step']}: {status['phase']}" if self._rows else status["phase"]
            self._show_once(f"live page {trainer.base_url}")
            before = status.get("metrics", {}).get("accuracy/eval_before")
            if before is not None and not self._rows:
                self._show_once(f"held-out accuracy before the first step: {before:.1%}")
            for note in status.get("notes", []):
                self._show_once(f"  {note}")
        except (httpx.HTTPError, ValueError):
            phase = "stopping" if self._rows else "starting"
        self._show_new_rows()
        self._bar.update(self._task, completed=len(self._rows), description=phase, left=self._time_left())
        if self._live is not None:
            self._live.update(self._view())

    def summary(self, file: Path) -> None:
        """Prints the gain, the run folder and the commands to try next."""
        for note in self._folder.notes():  # the trainer may have ended before it was asked
            self._show_once(f"  {note}")
        rows = self._metrics.refresh()
        say = functools.partial(self._console.print, soft_wrap=True)
        say()
        if self._draining:
            say(f"stopped after {len(rows)} of {self._config.loop.steps} steps; resume with:")
            say(f"  {self.resume_command}")
        if not rows:
            return
        if not self._draining and plateaued(rows, patience := self._config.checkpoint.patience):
            say(f"ended after {len(rows)} steps: no better policy in {patience} evaluations (checkpoint.patience)")
        if self._config.checkpoint.keep_best and (best := best_of(rows)) is not None:
            say(f"best policy: {best}")
        if all(row["reward/mean"] == 0 for row in rows):
            say(self._without_reward(rows))
        self._print_gain(rows)
        say(f"run folder: {self._folder.path}")
        say("next:")
        for command, purpose in self._next(file):
            say(f"  {command:<60}  {purpose}")

    def _without_reward(self, rows: list[Row]) -> str:
        cut = sum(row.get("length/truncated_fraction") or 0.0 for row in rows) / len(rows)
        if cut >= CUT_FRACTION:
            return (
                f"every reward was 0, and {cut:.0%} of the responses were cut at sampling.max_tokens="
                f"{self._config.sampling.max_tokens}, before an answer. Raise sampling.max_tokens."
            )
        return (
            "every reward was 0: the model never gave a right answer, so the run could not learn. Read its answers "
            f"in {self._folder.rollouts}, then use a stronger model or easier data."
        )

    def _next(self, file: Path) -> list[tuple[str, str]]:
        other = "rlsd" if self._config.algorithm.name == "grpo" else "grpo"
        samples = sorted(self._folder.rollouts.glob("*.jsonl*"))
        suggestions = [
            (f"{PROGRAM} export {quote(str(self._folder.path))} adapter", "the trained adapter, for PEFT or vLLM")
        ]
        if samples:
            suggestions.append(
                (f"{PROGRAM} dashboard {quote(str(self._folder.path))}", "every response with the credit of its tokens")
            )
        if not (self._config.algorithm.offline or self._config.algorithm.scores_steps):  # GRPO and RLSD need other data
            suggestions.append(
                (
                    f"{PROGRAM} train {quote(str(file))} --set algorithm.name={other}",
                    f"the same with {other.upper()}, to compare",
                )
            )
        return suggestions

    def _print_gain(self, rows: list[Row]) -> None:
        before = next((row["accuracy/eval_before"] for row in rows if "accuracy/eval_before" in row), None)
        after = next((row["accuracy/eval"] for row in reversed(rows) if "accuracy/eval" in row), None)
        if before is not None and after is not None:
            self._console.print(
                f"held-out accuracy, sampled at temperature {self._config.eval.temperature:g}: "
                f"{before:.1%} before, {after:.1%} after ({(after - before) * 100:+.1f} points)",
                soft_wrap=True,
            )

    def _show_new_rows(self) -> None:
        shown, self._rows = len(self._rows), self._metrics.refresh()
        if self._live is None:
            for row in self._rows[shown:]:
                cells = (
                    f"{name} {_cell(row, key, form)}"
                    for name, key, form in self._columns
                    if key in row and (row[key] or name != TRUNCATED)
                )
                self._console.print("  ".join(cells), self._time_left(), soft_wrap=True)

    def _show_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._console.print(text, markup=False, soft_wrap=True)

    def _time_left(self) -> str:
        recent = [row["time/step_seconds"] for row in self._rows[-5:]]
        if not recent:
            return ""
        left = (self._config.loop.steps - len(self._rows)) * median(recent)  # the first step of a resume also waits
        return f"{int(left) // 60}m{int(left) % 60:02d}s left"

    def _view(self) -> Group:
        table = Table(box=None, pad_edge=False)
        cut = any(row.get("length/truncated_fraction") for row in self._rows)
        columns = [each for each in self._columns if cut or each[0] != TRUNCATED]
        for name, _, _ in columns:
            table.add_column(name, justify="right")
        for row in self._rows[-ROWS_SHOWN:]:
            table.add_row(*(_cell(row, key, form) for _, key, form in columns))
        return Group(table, self._bar)


def _cell(row: Row, key: str, form: str) -> str:
    if key not in row:
        return ""
    return "nan" if row[key] is None else form.format(row[key])  # JSON has no NaN: the reader gives None
