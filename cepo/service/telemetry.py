"""JSON logs with the ids of the current work, and the metrics and spans of deliveries and policy loads."""

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
from cepo.service.tracing import TRACER, Interval, trace_id

_ids: ContextVar[dict[str, Any] | None] = ContextVar("ids", default=None)


class JsonFormatter(logging.Formatter):
    """Formats a record as a line of JSON: time, level, service, message, ids of the current work, error if any."""

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
    """Adds the run, group, stage and policy of a task, and its trace if tracing is on, to log lines in the block."""
    ids = {"run": task.run, "group": task.group_id, "stage": where, "policy": task.policy.name}
    if TRACER.on:
        ids["trace"] = trace_id(task.group_id)
    token = _ids.set(ids)
    try:
        yield
    finally:
        _ids.reset(token)


class DeliveryTrace:
    """Measures one delivery to a stage: observes the metrics and sends the spans."""

    def __init__(self, metrics: StageMetrics, published_at: float, deliveries: int) -> None:
        """Starts the measurement now.

        Args:
            published_at: Unix time at which the group was published on the stage's stream.
        """
        self._metrics = metrics
        self._deliveries = deliveries
        now = time.time()
        self._intervals = [Interval("wait", min(published_at, now), now)]
        self.error = ""
        """The error of the handler; empty if it succeeded."""
        if deliveries == 1:
            metrics.wait_seconds.observe(now - self._intervals[0].begun)
        else:
            metrics.redeliveries.inc()

    @contextmanager
    def interval(self, name: str, seconds: Histogram) -> Iterator[None]:
        """Measures an interval of the delivery: observes the duration of the block."""
        begun, ticks = time.time(), time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - ticks
            seconds.observe(elapsed)
            self._intervals.append(Interval(name, begun, begun + elapsed))

    def send(self, task: PromptTask, stage: Stage) -> None:
        """Sends the spans, if tracing is on."""
        if TRACER.on:
            whole = Interval(stage.name.lower(), self._intervals[0].begun, self._intervals[-1].ended)
            TRACER.span(task, whole, tuple(self._intervals), {"cepo.deliveries": self._deliveries}, self.error)


@contextmanager
def loading(policy: PolicyRef, begun: float | None = None) -> Iterator[None]:
    """Measures an engine's load of a policy.

    Args:
        begun: the start by `time.perf_counter`, if the load began before the block.
    """
    begun = time.perf_counter() if begun is None else begun
    try:
        yield
    except Exception:
        LOAD_FAILURES.inc()
        raise
    LOAD_SECONDS.observe(time.perf_counter() - begun)
    POLICY_VERSION.set(policy.version)
