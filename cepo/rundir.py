"""The run folder: config.toml, excluded.json, metrics.jsonl, checkpoints/, adapters/, rollouts/, logs/."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import tomli_w

from cepo.errors import UserError
from cepo.runconfig import RunConfig

Row = dict[str, Any]
Excluded = dict[str, dict[int, str]]


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
    def images(self) -> Path:
        return self.path / "images"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def excluded(self) -> Path:
        """Rows of train and eval that the verifier cannot grade, with the reasons; written before the first step."""
        return self.path / "excluded.json"

    def check(self, *, resume: bool) -> None:
        """Whether a run can start here, or go on.

        Raises:
            UserError: it holds a run already, or there is none to resume.
        """
        exists = self.config.is_file()
        if exists and not resume:
            raise UserError(f"{self.path} holds a run already; go on with --resume or give another --run-dir")
        if resume and not exists:
            raise UserError(f"{self.path} holds no run to resume; leave --resume out or give its --run-dir")

    def create(self, config: RunConfig, *, resume: bool, excluded: Excluded | None = None) -> None:
        """Makes the folder and writes the resolved config; with `resume`, the folder goes on with its own rows.

        Raises:
            UserError: it holds a run already, or there is none to resume.
        """
        self.check(resume=resume)
        for folder in (self.path, self.adapters, self.checkpoints, self.rollouts, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        if excluded and not resume:
            self.excluded.write_text(json.dumps(excluded, indent=2) + "\n")
        scratch = self.config.with_suffix(".tmp")
        scratch.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
        scratch.rename(self.config)

    def excluded_rows(self) -> Excluded:
        """The rows of each set that the run leaves out."""
        found = json.loads(self.excluded.read_text()) if self.excluded.is_file() else {}
        return {name: {int(row): reason for row, reason in rows.items()} for name, rows in found.items()}

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
