"""Runs the trainer's loop over the in-process bus, with handlers of a test as the stages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from cepo.messages.arrays import Float32Array
from cepo.messages.groups import PolicyProof, PolicyRef, Stage
from cepo.prompts.renderer import Renderer
from cepo.service.stage import Handler, StageLoop
from cepo.testing import MemoryBus, ToyScorer
from services.trainer.loop import Run, train


class ProvenScorer(ToyScorer):
    """A toy scorer whose proof of every policy is the one that the publisher expects."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.renderer = Renderer(run.config.model.path)
        super().__init__(tokenizer_sha256=self.renderer.sha256)

    def proof(self, policy: PolicyRef) -> PolicyProof:
        expected = self.run.publisher.expected(policy)
        update = {"bound_modules": expected.bound_modules, "canary_logps": Float32Array.of(expected.canary_logps)}
        return super().proof(policy).model_copy(update=update)


class Reached(asyncio.Event):
    """An event that is set once a run has reached a step."""

    def __init__(self, run: Run, step: int) -> None:
        super().__init__()
        self._run, self._step = run, step

    def is_set(self) -> bool:
        return self._run.status.step >= self._step


async def trained(run: Run, bus: MemoryBus, handlers: Mapping[Stage, Handler], until: int = 99) -> list[dict[str, Any]]:
    """Trains a run to its end, or drains it at the step `until`; returns its metrics so far."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for stage, handler in handlers.items():
            group.create_task(StageLoop(bus, stage, handler).run(stop))
        await train(run, Reached(run, until))
        stop.set()
    return run.folder.rows()


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics without durations."""
    return [{key: value for key, value in row.items() if "second" not in key and key != "time"} for row in rows]
