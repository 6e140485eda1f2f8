"""Reads a run folder for the dashboard. The folder is chosen when the process starts, never by a request."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cepo.dashboard.browser import GroupBrowser
from cepo.errors import UserError
from cepo.run.folder import RunDir
from cepo.run.lines import Lines, Row, parsed
from cepo.run.rollouts import Rollouts

ALIVE_SECONDS = 15.0
"""A trainer that has not written its status for this long counts as dead."""
FINAL = ("done", "drained")
"""The last phases of a trainer before it exits."""


class Watched:
    """A run that the dashboard shows."""

    def __init__(self, run: RunDir) -> None:
        """Opens a run folder.

        Raises:
            UserError: the folder holds no run.
        """
        if not (run.config.is_file() or run.metrics.is_file()):
            raise UserError(f"{run.path} holds no run; give a folder with config.toml and metrics.jsonl")
        self.run = run
        self.metrics = Lines(run.metrics)
        self.failures = Lines(run.failures)
        self.browser = GroupBrowser(Rollouts(run.rollouts))

    def steps(self) -> list[Row]:
        """The rows of metrics.jsonl, without rows that have no valid step."""
        return [row for row in self.metrics.refresh() if isinstance(row.get("step"), int)]

    def given_up(self) -> list[Row]:
        """The rows of failures.jsonl, without rows that have no valid step."""
        return [row for row in self.failures.refresh() if isinstance(row.get("step"), int)]

    def image(self, sha256: str) -> bytes | None:
        """The bytes of an image of the run's problems; None if there is no such image."""
        path = self.run.images / sha256
        return path.read_bytes() if path.is_file() else None

    def status(self) -> Row:
        """The trainer's last status, and whether it is running. Without a status file, the state at the last row."""
        written = parsed(self.run.status.read_bytes()) if self.run.status.is_file() else []
        if not written:
            rows = self.steps()
            last = rows[-1] if rows else {}
            known = {"run": self.run.name, "phase": "unknown", "step": last.get("step", 0), "metrics": last}
            return {**known, "policy_version": last.get("policy_version", 0), "queues": {}, "running": False}
        status = written[-1]
        said = status.get("time")
        silent = time.time() - (said if isinstance(said, int | float) else 0.0)
        return {**status, "running": status.get("phase") not in FINAL and silent < ALIVE_SECONDS}

    def summary(self) -> Row:
        """The main settings from the run's config; values are missing if it cannot be read."""
        try:
            config: dict[str, Any] = tomllib.loads(self.run.config.read_text("utf-8"))
        except (OSError, ValueError):
            config = {}

        def section(name: str) -> Row:
            table = config.get(name)
            return table if isinstance(table, dict) else {}

        return {
            "algorithm": section("algorithm"),
            "model": "/".join(Path(str(section("model").get("path", ""))).parts[-2:]),
            "steps": section("loop").get("steps"),
            "prompts": section("sampling").get("prompts"),
            "samples": section("sampling").get("samples"),
            "rollouts_per_step": section("telemetry").get("rollouts_per_step"),
        }


def by_name(runs: Sequence[Watched]) -> dict[str, Watched]:
    """Runs by unique names: the folder name, with a number if two are equal. Example: "a", "a (2)"."""
    named: dict[str, Watched] = {}
    for watched in runs:
        name, number = watched.run.name, 2
        while name in named:
            name, number = f"{watched.run.name} ({number})", number + 1
        named[name] = watched
    return named
