"""What a process says about the work at hand: JSON log lines with its ids, metrics, and spans where they are traced."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from prometheus_client import Histogram

from cepo.messages.groups import PolicyRef, PromptTask, Stage
from cepo.service.metrics import LOAD_FAILURES, LOAD_SECONDS, POLICY_VERSION, StageMetrics
from cepo.service.tracing import TRACER, Part, trace_id

_ids: ContextVar[dict[str, Any] | None] = ContextVar("ids", default=None)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, service, message, the ids of the work, and the error if there is one."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "service": self._service,
            "message": record.getMessage(),
            **(_ids.get() or {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure_logging(service: str, level: str) -> None:
    """Sends every log record of this process to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("httpx", "uvicorn.access", "grpc"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextmanager
def logged(task: PromptTask, where: str) -> Iterator[None]:
    """Log lines within carry the run, group, stage, policy and, where it is traced, trace of this task."""
    ids = {"run": task.run, "group": task.group_id, "stage": where, "policy": task.policy.name}
    if TRACER.on:
        ids["trace"] = trace_id(task.group_id)
    token = _ids.set(ids)
    try:
        yield
    finally:
        _ids.reset(token)


class Passage:
    """One delivery's way through a stage, as it is counted and traced."""

    def __init__(self, metrics: StageMetrics, published_at: float, deliveries: int) -> None:
        """Begins now.

        Args:
            published_at: Unix time at which the group came to the stage's stream.
        """
        self._metrics = metrics
        self._deliveries = deliveries
        now = time.time()
        self._parts = [Part("wait", min(published_at, now), now)]
        self.error = ""
        """Why the handler raised, if it did."""
        if deliveries == 1:
            metrics.wait_seconds.observe(now - self._parts[0].begun)
        else:
            metrics.redeliveries.inc()

    @contextmanager
    def part(self, name: str, seconds: Histogram) -> Iterator[None]:
        """A part of the way: its duration is observed."""
        begun, ticks = time.time(), time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - ticks
            seconds.observe(elapsed)
            self._parts.append(Part(name, begun, begun + elapsed))

    def trace(self, task: PromptTask, stage: Stage) -> None:
        """Sends the spans, if this process traces."""
        if TRACER.on:
            whole = Part(stage.name.lower(), self._parts[0].begun, self._parts[-1].ended)
            TRACER.span(task, whole, tuple(self._parts), {"cepo.deliveries": self._deliveries}, self.error)


@contextmanager
def loading(policy: PolicyRef, begun: float | None = None) -> Iterator[None]:
    """An engine's load of a policy, as it is counted.

    Args:
        begun: when it began by `time.perf_counter`, if that was before.
    """
    begun = time.perf_counter() if begun is None else begun
    try:
        yield
    except Exception:
        LOAD_FAILURES.inc()
        raise
    LOAD_SECONDS.observe(time.perf_counter() - begun)
    POLICY_VERSION.set(policy.version)
