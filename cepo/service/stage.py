"""The loop of a stage: takes items from its stream, runs the handler, and forwards the result along the task's route.

A handler is a pure function of its message, so an item may be processed twice, but its result is published once. If a
handler raises, its item stays pending and is delivered again. After `max_deliveries` a `GroupFailed` is published
instead of a result, so that the trainer stops waiting. A `UserError` is not retried. Only this module catches all
exceptions, except `EngineDown` and `StorageError`, which end the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from cepo.errors import EngineDown, StorageError, UserError
from cepo.messages.groups import (
    EvidencedGroup,
    GroupFailed,
    PromptTask,
    RolloutGroup,
    ScoredGroup,
    Stage,
    StageMessage,
    TeachWhen,
)
from cepo.net.settings import Settings
from cepo.service.bus import Bus, Delivery, ready, stream_of
from cepo.service.metrics import StageMetrics
from cepo.service.telemetry import DeliveryTrace, logged

Handler = Callable[[Any], Awaitable[StageMessage]]
WAIT_SECONDS = 0.5
GIVEN_UP = "given up"
"""The beginning of the error of a group whose workers ended before they could say why."""
log = logging.getLogger(__name__)


def task_of(message: StageMessage) -> PromptTask:
    """The task that a message contains."""
    match message:
        case PromptTask():
            return message
        case RolloutGroup() | ScoredGroup() | EvidencedGroup() | GroupFailed():
            return message.task


def destination(stage: Stage, result: StageMessage) -> str:
    """The stream of a result: that of the next stage in its route, or `ready`. Equal rewards may skip the teacher."""
    task = task_of(result)
    following = None if isinstance(result, GroupFailed) else task.after(stage)
    if following is Stage.TEACH and task.teach_when is TeachWhen.REWARD_SPREAD and not _spread(result):
        following = None
    return ready(task.run) if following is None else stream_of(following)


def _spread(result: StageMessage) -> bool:
    return isinstance(result, ScoredGroup) and result.reward_spread


def consumer_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


@dataclass
class StageLoop:
    """Processes the items of one stream, at most `concurrency` at once."""

    bus: Bus
    stage: Stage
    handler: Handler
    concurrency: int = 64
    claim_seconds: float = 10.0
    max_deliveries: int = 5
    consumer: str = field(default_factory=consumer_name)
    _in_progress: dict[str, Delivery] = field(default_factory=dict, init=False)
    _metrics: StageMetrics = field(init=False)

    def __post_init__(self) -> None:
        self._metrics = StageMetrics(self.stage)

    @classmethod
    def of(cls, settings: Settings, bus: Bus, stage: Stage, handler: Handler) -> StageLoop:
        """A loop with the settings of a service."""
        return cls(bus, stage, handler, settings.concurrency, settings.claim_seconds, settings.max_deliveries)

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, and then finishes the items in progress."""
        done = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renew(done))  # in the group, so that its failure ends the loop
            try:
                await self._consume(stop)
            finally:
                done.set()  # the Redis client may swallow a cancellation

    async def _consume(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                free = self.concurrency - len(self._in_progress)
                if free == 0:
                    await asyncio.sleep(0.005)
                    continue
                wait = WAIT_SECONDS if not self._in_progress else 0.05
                for item in await self.bus.receive(stream_of(self.stage), self.consumer, free, wait):
                    if item.id not in self._in_progress:
                        self._in_progress[item.id] = item
                        group.create_task(self._work(item))

    async def _work(self, item: Delivery) -> None:
        task = task_of(item.message)
        with logged(task, self.stage.name), self._metrics.in_progress.track_inprogress():
            trace = DeliveryTrace(self._metrics, item.published_at, item.deliveries)
            try:
                with trace.interval("handler", self._metrics.handler_seconds):
                    result = await self._attempt(item, task, trace)
                if result is not None:
                    with trace.interval("hop", self._metrics.hop_seconds):
                        published = await self.bus.complete(item, destination(self.stage, result), result)
                    outcome = "failed" if isinstance(result, GroupFailed) else "done"
                    self._metrics.groups[outcome if published else "superseded"].inc()
            finally:
                del self._in_progress[item.id]
                trace.send(task, self.stage)

    async def _attempt(self, item: Delivery, task: PromptTask, trace: DeliveryTrace) -> StageMessage | None:
        if item.deliveries > self.max_deliveries:
            return self._failed(item, task, f"{GIVEN_UP} after {self.max_deliveries} deliveries that ended its workers")
        try:
            return await self.handler(item.message)
        except (EngineDown, StorageError):
            raise  # the process ends; its items stay pending and are reclaimed
        except UserError as error:
            log.warning("refused: %s", error)
            trace.error = str(error)
            return self._failed(item, task, str(error))
        except Exception as error:
            log.exception("delivery %d of %d failed", item.deliveries, self.max_deliveries)
            trace.error = f"{type(error).__name__}: {error}"
            if item.deliveries == self.max_deliveries:
                return self._failed(item, task, trace.error)
            self._metrics.groups["retried"].inc()
            return None

    def _failed(self, item: Delivery, task: PromptTask, error: str) -> GroupFailed:
        return GroupFailed(task=task, stage=self.stage, error=error, deliveries=item.deliveries)

    async def _renew(self, done: asyncio.Event) -> None:
        """Renews the claims on the items in progress every quarter of the claim time, and measures the stream."""
        while not done.is_set():
            if self._in_progress:
                await self.bus.renew(self.consumer, list(self._in_progress.values()))
            stream = stream_of(self.stage)
            self._metrics.queue_groups.set(await self.bus.depth(stream))
            self._metrics.queue_oldest_seconds.set(await self.bus.age(stream))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), self.claim_seconds / 4)
