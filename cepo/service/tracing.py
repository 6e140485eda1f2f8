"""OpenTelemetry traces: one trace per group. Its id is a hash of the group's id, so messages need no trace context.

The root is the trainer's span of the whole group. Its id is also a hash, so that every stage can name it as the parent.
Spans are created after they have ended, from recorded times. Without an endpoint nothing is recorded.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cepo.messages.groups import PromptTask

EXPORT_SECONDS = 5.0
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Interval:
    """A named interval, in Unix seconds."""

    name: str
    begun: float
    ended: float


def trace_id(group_id: str) -> str:
    """The trace id of a group: 32 hexadecimal digits."""
    return hashlib.sha256(group_id.encode()).hexdigest()[:32]


def root_span_id(group_id: str) -> str:
    """The id of the trainer's span of a group: 16 hexadecimal digits."""
    return hashlib.sha256(group_id.encode()).hexdigest()[32:48]


class Tracer:
    """Sends spans in the background, in batches. It does nothing until it is started."""

    def __init__(self) -> None:
        self._processor: Any = None
        self._resource: Any = None

    @property
    def on(self) -> bool:
        return self._processor is not None

    def start(self, service: str, endpoint: str) -> None:
        """Starts to send spans to an OTLP collector.

        Args:
            endpoint: address of the collector, such as http://collector:4318; the path /v1/traces is added.
        """
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_SECONDS)
        self._resource = Resource.create({"service.name": f"cepo-{service}"})
        self._processor = BatchSpanProcessor(exporter, schedule_delay_millis=1000)

    def stop(self) -> None:
        """Sends the remaining spans and stops."""
        if self._processor is not None:
            self._processor.shutdown()
            self._processor = None

    def root(self, task: PromptTask, whole: Interval, attributes: Mapping[str, Any]) -> None:
        """Sends the trainer's span of a group, from its publication to its arrival."""
        self._send(task, whole, root_span_id(task.group_id), "", _ids(task) | dict(attributes), "")

    def span(
        self,
        task: PromptTask,
        whole: Interval,
        intervals: tuple[Interval, ...] = (),
        attributes: Mapping[str, Any] | None = None,
        error: str = "",
    ) -> None:
        """Sends a child of the group's root span, and the child's own parts as its children."""
        span_id = secrets.token_hex(8)
        attributes = _ids(task) | dict(attributes or {})
        self._send(task, whole, span_id, root_span_id(task.group_id), attributes, error)
        for interval in intervals:
            self._send(task, interval, secrets.token_hex(8), span_id, {}, "")

    def _send(
        self,
        task: PromptTask,
        interval: Interval,
        span_id: str,
        parent_id: str,
        attributes: Mapping[str, Any],
        error: str,
    ) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

        def context(of: str) -> SpanContext:
            sampled = TraceFlags(TraceFlags.SAMPLED)
            return SpanContext(int(trace_id(task.group_id), 16), int(of, 16), is_remote=False, trace_flags=sampled)

        span = ReadableSpan(
            interval.name,
            context=context(span_id),
            parent=context(parent_id) if parent_id else None,
            resource=self._resource,
            attributes=attributes,
            status=Status(StatusCode.ERROR, error) if error else Status(),
            start_time=int(interval.begun * NANOSECONDS),
            end_time=int(max(interval.begun, interval.ended) * NANOSECONDS),
        )
        self._processor.on_end(span)


def _ids(task: PromptTask) -> dict[str, Any]:
    return {
        "cepo.run": task.run,
        "cepo.group": task.group_id,
        "cepo.step": task.step,
        "cepo.purpose": task.purpose.name.lower(),
        "cepo.policy": task.policy.name,
    }


TRACER = Tracer()
"""The tracer of this process."""
