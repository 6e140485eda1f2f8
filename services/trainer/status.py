"""Where a run stands: what `GET /v1/status` and the dashboard show, written to the run folder."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from cepo.messages.groups import BASE_POLICY, PolicyRef, Stage
from cepo.run.folder import RunDir
from cepo.service.bus import Bus, ready, stream_of

BEAT_SECONDS = 1.0


@dataclass
class Status:
    """What an operator sees of a run."""

    folder: RunDir
    steps: int
    phase: str = "loading"
    step: int = 0
    policy: PolicyRef = BASE_POLICY
    row: dict[str, float] = field(default_factory=dict)
    queues: dict[str, int] = field(default_factory=dict)
    """Items on each stream, in hands or not."""
    _peaks: dict[str, int] = field(default_factory=dict)
    _since: float = field(default_factory=time.time)

    def enter(self, phase: str) -> None:
        """Says that a phase begins."""
        self.phase, self._since = phase, time.time()
        self.write()

    def write(self) -> None:
        """Writes it to the run folder."""
        self.folder.write_status(self.shown())

    def shown(self) -> dict[str, Any]:
        """As JSON; times are Unix seconds."""
        return {
            "run": self.folder.name,
            "phase": self.phase,
            "phase_since": self._since,
            "step": self.step,
            "steps": self.steps,
            "policy_version": self.policy.version,
            "queues": self.queues,
            "metrics": self.row,
            "time": time.time(),
        }

    async def beat(self, bus: Bus) -> None:
        """Measures the queues and writes the status, for as long as it is left to."""
        streams = {stage.name.lower(): stream_of(stage) for stage in Stage} | {"ready": ready(self.folder.name)}
        while True:
            self.queues = {name: await bus.depth(stream) for name, stream in streams.items()}
            for name, depth in self.queues.items():
                self._peaks[name] = max(depth, self._peaks.get(name, 0))
            self.write()
            await asyncio.sleep(BEAT_SECONDS)

    def take_peaks(self) -> dict[str, float]:
        """The longest each queue was seen since the last call, as metrics."""
        peaks = {f"queue/{name}_max": float(depth) for name, depth in self._peaks.items()}
        self._peaks = dict(self.queues)
        return peaks
