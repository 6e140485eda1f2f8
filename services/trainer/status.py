"""The state of a run: its current phase and step, written to the run folder for `GET /v1/status` and the dashboard."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cepo.algo.base import Metrics
from cepo.messages.groups import BASE_POLICY, PolicyRef, PromptTask, Stage
from cepo.run.folder import RunDir
from cepo.service.bus import Bus, ready, stream_of

BEAT_SECONDS = 1.0
MAX_NOTES = 20
log = logging.getLogger(__name__)


@dataclass
class Status:
    """The state of a run as an operator sees it."""

    folder: RunDir
    steps: int
    phase: str = "loading"
    """One of loading, rollout, train, publish, eval, drained and done."""
    step: int = 0
    policy: PolicyRef = BASE_POLICY
    row: Metrics = field(default_factory=dict)
    """The metrics of the last finished step."""
    notes: list[str] = field(default_factory=list)
    """What the user of the run should know, such as a checkpoint that is damaged."""
    queues: dict[str, int] = field(default_factory=dict)
    """The number of items on each stream, including those that a worker holds."""
    _peaks: dict[str, int] = field(default_factory=dict)
    _since: float = field(default_factory=time.time)

    def enter(self, phase: str) -> None:
        """Begins a phase and writes the status."""
        self.phase, self._since = phase, time.time()
        self.write()

    def note(self, text: str) -> None:
        """Adds a note, logs it and writes the status."""
        log.warning("%s", text)
        self.notes = [*self.notes, text][-MAX_NOTES:]
        self.write()

    def write(self) -> None:
        """Writes the status to the run folder."""
        self.folder.write_status(self.shown())

    def shown(self) -> dict[str, Any]:
        """The status as JSON; times are Unix seconds."""
        return {
            "run": self.folder.name,
            "phase": self.phase,
            "phase_since": self._since,
            "step": self.step,
            "steps": self.steps,
            "policy_version": self.policy.version,
            "queues": self.queues,
            "notes": self.notes,
            "metrics": self.row,
            "time": time.time(),
        }

    async def beat(self, bus: Bus) -> None:
        """Measures the queues and writes the status every second, until it is cancelled."""
        streams = {stage.name.lower(): stream_of(stage) for stage in Stage} | {"ready": ready(self.folder.name)}
        while True:
            self.queues = {name: await bus.depth(stream) for name, stream in streams.items()}
            for name, depth in self.queues.items():
                self._peaks[name] = max(depth, self._peaks.get(name, 0))
            self.write()
            await asyncio.sleep(BEAT_SECONDS)

    def take_peaks(self) -> Metrics:
        """The greatest depth of each queue since the last call, as metrics `queue/NAME_max`."""
        peaks = {f"queue/{name}_max": float(depth) for name, depth in self._peaks.items()}
        self._peaks = dict(self.queues)
        return peaks


class StepRow:
    """The row of one step in metrics.jsonl, filled while the step runs.

    A step is a sequence of phases, and each sets the status and measures its own time:

        with row.phase("train"):
            row.add(learner.learn(batch, step))   # adds what was measured, then `time/train_seconds`
    """

    def __init__(self, status: Status, task: PromptTask, metrics: Mapping[str, float]) -> None:
        """Begins the step of a task.

        Args:
            metrics: values that are known before the step.
        """
        self._status = status
        self._started = time.perf_counter()
        self.metrics: Metrics = {"step": task.step, "policy_version": task.policy.version, **metrics}
        self.add({"time/eval_seconds": 0.0})
        status.step = task.step

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Runs a phase of the step; afterwards the row has its duration as `time/NAME_seconds`."""
        self._status.enter(name)
        started = time.perf_counter()
        yield
        self.add({f"time/{name}_seconds": time.perf_counter() - started})

    def add(self, metrics: Mapping[str, float]) -> None:
        """Adds metrics to the row."""
        self.metrics.update(metrics)

    def ended(self) -> Metrics:
        """The row with the duration of the whole step and the peaks of the queues."""
        self.add({"time/step_seconds": time.perf_counter() - self._started, **self._status.take_peaks()})
        return self.metrics
