"""What a process says about itself: JSON log lines with the ids of the work at hand, and Prometheus metrics."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from cepo.contracts import PromptTask, Stage

GROUPS = Counter("cepo_groups_total", "Groups a stage finished", ["stage", "result"])
SECONDS = Histogram("cepo_stage_seconds", "Seconds a stage held a group", ["stage"])
IN_HAND = Gauge("cepo_groups_in_hand", "Groups a stage holds now", ["stage"])

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
def at_work(task: PromptTask, stage: Stage) -> Iterator[None]:
    """Log lines and metrics within carry the run, group, stage and policy of this task."""
    ids = {"run": task.run, "group": task.group_id, "stage": stage.name, "policy": task.policy.name}
    token = _ids.set(ids)
    begun = time.perf_counter()
    IN_HAND.labels(stage.name).inc()
    try:
        yield
    finally:
        IN_HAND.labels(stage.name).dec()
        SECONDS.labels(stage.name).observe(time.perf_counter() - begun)
        _ids.reset(token)
