"""An OTLP collector over real HTTP that keeps the spans it receives."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """A span as it was received; times in seconds."""

    service: str
    name: str
    id: str
    parent: str
    begun: float
    ended: float
    attributes: dict[str, Any]
    error: str


@dataclass
class Collector:
    """Serves on a free loopback port within `with`; spans by trace id."""

    traces: dict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))

    def __enter__(self) -> Collector:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                collector._keep(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _keep(self, body: bytes) -> None:
        for of in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(a.value.string_value for a in of.resource.attributes if a.key == "service.name")
            for span in (span for scope in of.scope_spans for span in scope.spans):
                values = {a.key: getattr(a.value, a.value.WhichOneof("value") or "") for a in span.attributes}
                begun, ended = span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9
                ids = (span.span_id.hex(), span.parent_span_id.hex())
                kept = Span(service, span.name, *ids, begun, ended, values, span.status.message)
                self.traces[span.trace_id.hex()].append(kept)
