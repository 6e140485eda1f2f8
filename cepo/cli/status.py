"""`cepo status RUN_DIR`: where a run is, in ten lines for a person or as JSON for a program."""

from __future__ import annotations

import json
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from statistics import median
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from cepo.cli.progress import PROGRAM
from cepo.dashboard.folder import FINAL
from cepo.errors import Unreachable, UserError
from cepo.net.connections import web_client
from cepo.net.settings import Settings
from cepo.run.folder import RunDir
from cepo.run.lines import Row, parsed

WATCH_SECONDS = 1.0
RECENT_STEPS = 5
"""The steps whose median time predicts the time left."""
Z = 1.959964
"""Standard deviations of a 95 % interval."""
STATES = {
    "loading": "loading",
    "rollout": "running, samples responses",
    "train": "running, trains",
    "publish": "running, publishes its policy",
    "eval": "running, measures the held-out accuracy",
    "done": "done",
    "drained": "stopped after a saved step",
}
STAGES = {"rollout": "rollout", "verify": "verifier", "teach": "teacher"}
"""The service that works on each queue."""


def status(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")],
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the trainer's status as JSON, as in a pipe.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Print the status every second until the run ends.")] = False,
) -> None:
    """Prints ten lines on a terminal, and the trainer's status as JSON otherwise; an ended run has its last status.

    Raises:
        UserError: the folder holds no run that was started on this machine.
        Unreachable: the trainer does not answer, and its last status is not final.
    """
    run = RunDir(run_dir)
    if json or not sys.stdout.isatty():
        for current, gone in _statuses(run_dir, watch):
            if gone is not None:
                raise gone
            print(_json(current), flush=True)
        return
    console = Console(highlight=False, markup=False)
    if not watch:
        current, gone = _current(run_dir)
        if current:
            console.print("\n".join(lines(run, run_dir, current, gone is None)), soft_wrap=True)
        if gone is not None:
            raise gone
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        for current, gone in _statuses(run_dir, watch):
            live.update(Text("\n".join(lines(run, run_dir, current, gone is None))), refresh=True)
            if gone is not None:
                raise gone


def _json(current: Row) -> str:
    return json.dumps(current, indent=2)


def _statuses(run_dir: Path, watch: bool) -> Iterator[tuple[Row, Unreachable | None]]:
    """The status now, and every second until the run ends if `watch`; with the error of a trainer that is gone."""
    while True:
        current, gone = _current(run_dir)
        yield current, gone
        if not watch or gone is not None or current.get("phase") in FINAL:
            return
        time.sleep(WATCH_SECONDS)


def _current(run_dir: Path) -> tuple[Row, Unreachable | None]:
    address = _address(run_dir)
    try:
        with web_client(Settings.from_environment(), address) as web:
            reply = web.get("/v1/status")
        answered: Row = reply.raise_for_status().json()
        return answered, None
    except httpx.HTTPError as error:
        path = RunDir(run_dir).status
        written = parsed(path.read_bytes())[-1:] if path.is_file() else []
        last = written[0] if written else {}
        if last.get("phase") in FINAL:
            return last, None
        return last, Unreachable(f"the trainer at {address} does not answer ({error}); the run has ended, or see logs/")


def _address(run_dir: Path) -> str:
    try:
        return str(json.loads((run_dir / "services.json").read_text())["http"]["trainer"])
    except (OSError, ValueError, KeyError) as error:  # `cepo up` and `cepo eval` write addresses without a trainer
        raise UserError(f"{run_dir} holds no run that was started here; give the folder of one") from error


def lines(run: RunDir, given: Path, current: Row, alive: bool) -> list[str]:
    """The status as a person reads it.

    Args:
        given: the folder as the user wrote it, for the next command.
        alive: whether the trainer answers, or has ended as it should.
    """
    rows = run.rows()
    phase, steps = str(current.get("phase", "unknown")), int(current.get("steps") or 0)
    state = STATES.get(phase, phase) if alive else f"the trainer is gone; it last wrote: {phase}"
    said = {
        "run": str(run.path),
        "state": state,
        "step": f"{len(rows)} of {steps} done, policy v{current.get('policy_version', 0)}",
        "before": _held_out(run, rows, "accuracy/eval_before"),
        "now": _held_out(run, rows, "accuracy/eval"),
        "training": _training(rows),
        "time": _time(rows, steps, running=alive and phase not in FINAL),
        "waits for": _waiting(phase, current.get("queues") or {}) if alive else "nothing; no trainer runs",
    }
    if notes := current.get("notes"):
        said["note"] = str(notes[-1])
    if alive and phase not in FINAL:
        said["page"] = _address(given)
    said["next"] = _next(quote(str(given)), phase, alive, bool(rows))
    return [f"{name:<10} {text}" for name, text in said.items()]


def _held_out(run: RunDir, rows: list[Row], key: str) -> str:
    """The last held-out accuracy of a key with its interval. Example: "89.5% held out, 95 % interval 85.1 to 92.6"."""
    value = next((row[key] for row in reversed(rows) if row.get(key) is not None), None)
    if value is None:
        return "held-out accuracy not measured yet"
    problems = _problems(run)
    if not problems:
        return f"{value:.1%} held out"
    low, high = wilson(value, problems)
    return f"{value:.1%} of {problems} held-out problems, 95 % interval {low * 100:.1f} to {high * 100:.1f}"


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` independent trials.

    >>> tuple(round(bound, 3) for bound in wilson(0.5, 100))
    (0.404, 0.596)
    """
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * (share * (1 - share) / count + Z**2 / (4 * count**2)) ** 0.5
    return middle - half, middle + half


def _problems(run: RunDir) -> int:
    """The number of problems of an evaluation. Several samples of one problem are not independent and count once."""
    try:
        wanted = int(tomllib.loads(run.config.read_text("utf-8"))["eval"]["prompts"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    stored = run.problems / "eval.jsonl"
    return min(wanted, stored.read_bytes().count(b"\n")) if stored.is_file() else wanted


def _training(rows: list[Row]) -> str:
    if not rows:
        return "no step yet"
    last = rows[-1]
    shown = [f"{name} {last[key]:{form}}" for name, key, form in _TRAINING if last.get(key) is not None]
    if last.get("length/truncated_fraction"):
        shown.append(f"{last['length/truncated_fraction']:.0%} of the responses cut short")
    return ", ".join(shown)


_TRAINING = (("reward", "reward/mean", ".3f"), ("accuracy", "accuracy/train", ".1%"))


def _time(rows: list[Row], steps: int, *, running: bool) -> str:
    recent = [row["time/step_seconds"] for row in rows[-RECENT_STEPS:] if row.get("time/step_seconds") is not None]
    if not recent:
        return "unknown until a step has ended"
    each = median(recent)
    return f"{each:.1f} s a step" + (f", about {_clock((steps - len(rows)) * each)} left" if running else "")


def _clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def _waiting(phase: str, queues: dict[str, Any]) -> str:
    """What the trainer needs before it can go on. Example: "3 groups in rollout, 1 group in teacher"."""
    if phase in FINAL:
        return "nothing; the run has ended"
    if phase in ("train", "publish"):
        return "nothing; the trainer works"
    if phase == "loading":
        return "the model to load and the services to be ready"
    depths = [(STAGES[name], depth) for name, depth in queues.items() if name in STAGES and depth]
    return ", ".join(f"{depth} group{'s' * (depth != 1)} in {name}" for name, depth in depths) or "its next groups"


def _next(folder: str, phase: str, alive: bool, trained: bool) -> str:
    if not alive or phase == "drained":
        return f"{PROGRAM} resume {folder}"
    if phase == "done" and trained:
        return f"{PROGRAM} export {folder} adapter"
    return f"{PROGRAM} status --watch {folder}"
