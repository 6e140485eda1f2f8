"""What the dashboard reads of a run folder. The folder is named when the process starts, never by a request."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cepo.errors import UserError
from cepo.run.folder import RunDir
from cepo.run.lines import Lines, Row, parsed

ALIVE_SECONDS = 15.0
"""A trainer that has not written its status for this long is taken to be gone."""
FINAL = ("done", "drained")
"""Phases after which a trainer ends."""


class Watched:
    """A run that is looked at."""

    def __init__(self, run: RunDir) -> None:
        """Opens a run folder.

        Raises:
            UserError: it holds no run.
        """
        if not (run.config.is_file() or run.metrics.is_file()):
            raise UserError(f"{run.path} holds no run; give a folder with config.toml and metrics.jsonl")
        self.run = run
        self.metrics = Lines(run.metrics)
        self.failures = Lines(run.failures)

    def steps(self) -> list[Row]:
        """The rows of metrics.jsonl that name their step."""
        return [row for row in self.metrics.refresh() if isinstance(row.get("step"), int)]

    def given_up(self) -> list[Row]:
        """The rows of failures.jsonl that name their step."""
        return [row for row in self.failures.refresh() if isinstance(row.get("step"), int)]

    def groups(self, step: int) -> list[Row]:
        """The groups of a step that were written down; none where the run keeps none."""
        try:
            return parsed(self.run.rollouts_of(step).read_bytes())
        except FileNotFoundError:
            return []

    def image(self, sha256: str) -> bytes | None:
        """An image of the run's problems; None where it has none of that name."""
        path = self.run.images / sha256
        return path.read_bytes() if path.is_file() else None

    def status(self) -> Row:
        """What the trainer last said, and whether it still works; of a run without a status, where its rows end."""
        found = parsed(self.run.status.read_bytes()) if self.run.status.is_file() else []
        if not found:
            rows = self.steps()
            last = rows[-1] if rows else {}
            known = {"run": self.run.name, "phase": "unknown", "step": last.get("step", 0), "metrics": last}
            return {**known, "policy_version": last.get("policy_version", 0), "queues": {}, "running": False}
        status = found[-1]
        said = status.get("time")
        silent = time.time() - (said if isinstance(said, int | float) else 0.0)
        return {**status, "running": status.get("phase") not in FINAL and silent < ALIVE_SECONDS}

    def summary(self) -> Row:
        """What the run is, of its config; of another file of that name, nothing."""
        try:
            config: dict[str, Any] = tomllib.loads(self.run.config.read_text("utf-8"))
        except (OSError, ValueError):
            config = {}

        def section(name: str) -> Row:
            found = config.get(name)
            return found if isinstance(found, dict) else {}

        return {
            "algorithm": section("algorithm"),
            "model": "/".join(Path(str(section("model").get("path", ""))).parts[-2:]),
            "steps": section("loop").get("steps"),
            "prompts": section("sampling").get("prompts"),
            "samples": section("sampling").get("samples"),
            "rollouts_per_step": section("telemetry").get("rollouts_per_step"),
        }


def by_name(runs: Sequence[Watched]) -> dict[str, Watched]:
    """Runs under names of their own: those of their folders, with a number where two are the same."""
    found: dict[str, Watched] = {}
    for watched in runs:
        name, number = watched.run.name, 2
        while name in found:
            name, number = f"{watched.run.name} ({number})", number + 1
        found[name] = watched
    return found
