"""The run folder: config.toml, metrics.jsonl, checkpoints/, adapters/, rollouts/, logs/."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import tomli_w

from cepo.errors import UserError
from cepo.runconfig import RunConfig

Row = dict[str, Any]


class RunDir:
    """Paths and files of one run; its name is the run's id."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.name = self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def adapters(self) -> Path:
        return self.path / "adapters"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def create(self, config: RunConfig, *, resume: bool) -> None:
        """Makes the folder and writes the resolved config; with `resume`, the folder goes on.

        Raises:
            UserError: it holds a run already, or there is none to resume.
        """
        exists = self.config.is_file()
        if exists and not resume:
            raise UserError(f"{self.path} holds a run already; go on with --resume or give another --run-dir")
        if resume and not exists:
            raise UserError(f"{self.path} holds no run to resume; leave --resume out or give its --run-dir")
        for folder in (self.path, self.adapters, self.checkpoints, self.rollouts, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        scratch = self.config.with_suffix(".tmp")
        scratch.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
        scratch.rename(self.config)

    def append(self, row: Row) -> None:
        """Adds one step to metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[Row]:
        """The steps so far; a last line cut short by a crash is left out."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1] if line]

    def truncate(self, step: int) -> None:
        """Drops the steps from `step` on: they will be done again."""
        kept = [row for row in self.rows() if row["step"] < step]
        scratch = self.metrics.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(row) + "\n" for row in kept))
        scratch.rename(self.metrics)
