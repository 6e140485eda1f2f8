"""The HTTP server of every REST surface: uvicorn with bounds on slow clients, heads and connections that idle."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from cepo.net.bodies import MAX_BODY_BYTES
from cepo.net.settings import Settings
from cepo.net.tls import server_tls

HEAD_SECONDS = 10.0
"""Timeout of the head of a request: its first line and headers, from the connection or the first byte on."""
STALL_SECONDS = 60.0
"""Timeout of a client that does not read its reply."""
MAX_HEAD_BYTES = 2**16

W = TypeVar("W", bound=uvicorn.Server)


class BoundedHttp(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's HTTP protocol, which by itself waits for ever for a head and keeps as many bytes of it as arrive.

    A connection is closed if the head of its next request is not complete within HEAD_SECONDS or MAX_HEAD_BYTES, or if
    the client does not read for STALL_SECONDS.
    """

    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begins to wait for the head of the first request."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def data_received(self, data: bytes) -> None:
        """Parses data. Bytes that no request owns are a head, or the rest of a body whose request was answered."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_bytes = 0
            self._stop()
            return
        self._head_bytes += len(data)
        is_rest_of_body = self.cycle is not None and self.cycle.more_body
        if self._head_bytes > (MAX_BODY_BYTES if is_rest_of_body else MAX_HEAD_BYTES):
            self._refuse(b"431 Request Header Fields Too Large")
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timers."""
        self._stop()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begins to wait for a client that does not read."""
        super().pause_writing()
        self._stalled = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Ends the wait for the client."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def _too_slow(self) -> None:
        self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        self._stop()
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def web_server(app: FastAPI, settings: Settings, kind: type[W], **options: Any) -> W:
    """A server of an application, with TLS if this process has certificates.

    Forwarded addresses are not believed, because the rate is limited by address. There are no WebSockets.

    Args:
        kind: the class of the server, such as `uvicorn.Server`.
        options: further options of `uvicorn.Config`.

    Raises:
        UserError: a certificate or key cannot be read.
    """
    config = uvicorn.Config(app, http=BoundedHttp, ws="none", proxy_headers=False, server_header=False, **options)
    config.load()
    config.ssl = server_tls(settings)
    return kind(config)
