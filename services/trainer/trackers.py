"""The trackers of a run: metrics.jsonl and Prometheus, and the trackers that `[telemetry]` names.

A tracker is a function that opens it, as in [telemetry] trackers = ["my_trackers:mlflow_run"]:

    def mlflow_run(run: TrackedRun) -> LogRow:
        mlflow.start_run(run_name=run.name)
        return mlflow.log_metrics                    # called as log_metrics({"reward/mean": 0.5, ...}, 3)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cepo.errors import UserError
from cepo.run.config import RunConfig
from cepo.run.folder import RunDir
from cepo.run.sections import TelemetryConfig
from cepo.service.hooks import load_function, one_line
from cepo.service.metrics import PROGRESS, TRAIN, TRAINED_TOKENS

LogRow = Callable[[Mapping[str, Any], int], Any]
"""Takes a row of metrics.jsonl and its step."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is opened with. A resumed run has the same name and path."""

    name: str
    path: Path
    """The run folder."""
    config: dict[str, Any]
    """The resolved run file by section, such as {"loop": {"steps": 20, ...}, ...}."""


Opener = Callable[[TrackedRun], LogRow]


def openers(telemetry: TelemetryConfig) -> dict[str, Opener]:
    """The functions that open the configured trackers, by the key and name that stand for them in messages.

    Raises:
        UserError: a tracker is not installed or cannot be imported.
    """
    named: dict[str, Opener] = {}
    if telemetry.tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("telemetry.tensorboard = true needs `pip install tensorboard`") from error
        named["telemetry.tensorboard"] = partial(_tensorboard, SummaryWriter)
    if telemetry.wandb_project:
        try:
            import wandb
        except ImportError as error:
            raise UserError("telemetry.wandb_project needs `pip install wandb`") from error
        named["telemetry.wandb_project"] = partial(_wandb, wandb, telemetry.wandb_project)
    for name in telemetry.trackers:
        named[f"telemetry.trackers: {name}"] = load_function(name, "telemetry.trackers")
    return named


class Trackers:
    """Writes the metrics of a step to metrics.jsonl, to Prometheus and to the configured trackers."""

    def __init__(self, config: RunConfig, run: RunDir, note: Callable[[str], None]) -> None:
        """Opens the trackers.

        Args:
            note: takes a line for the user, once for each tracker that fails.

        Raises:
            UserError: a configured tracker is not installed or does not open.
        """
        self._run, self._note = run, note
        self._failed: set[str] = set()
        tracked = TrackedRun(run.name, run.path, config.model_dump(mode="json"))
        self._logs = {name: _opened(name, opener, tracked) for name, opener in openers(config.telemetry).items()}

    def step(self, row: Mapping[str, Any]) -> None:
        """Writes one step to every tracker. A tracker that fails does not end the run."""
        self._run.append(dict(row))
        TRAIN.step(self._run.name, row)
        TRAINED_TOKENS.inc(row.get("tokens/trained", 0.0))
        PROGRESS.labels(self._run.name).set_to_current_time()
        for name, log in self._logs.items():
            try:
                log(dict(row), row["step"])
            except Exception as error:  # noqa: BLE001  # the code of the user or of another project
                self._tell(name, row["step"], error)

    def _tell(self, name: str, step: int, error: Exception) -> None:
        if name not in self._failed:
            self._failed.add(name)
            self._note(f"{name} failed at step {step}: {one_line(error)}; metrics.jsonl has every row")


def _opened(name: str, opener: Opener, run: TrackedRun) -> LogRow:
    try:
        log = opener(run)
    except (Exception, SystemExit) as error:
        raise UserError(f"{name} does not open: {one_line(error)}; correct it, or leave the tracker out") from error
    if not callable(log):
        raise UserError(f"{name} returned {type(log).__name__}; return a function that takes a row and its step")
    return log


def _tensorboard(writer_class: Any, run: TrackedRun) -> LogRow:
    writer = writer_class(run.path / "tensorboard")

    def log(row: Mapping[str, Any], step: int) -> None:
        for key, value in row.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    return log


def _wandb(wandb: Any, project: str, run: TrackedRun) -> LogRow:
    opened = wandb.init(project=project, name=run.name, resume="allow", id=run.name)
    return lambda row, step: opened.log(row, step=step)
