"""Mutual TLS in front of a plain port: a Redis with certificates, from one that was built without them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from types import TracebackType
from typing import Self

from tests.conftest import unused_port


class TlsFront:
    """Listens on a port of its own while it is entered; callers must show a certificate."""

    def __init__(self, certificates: str, behind: int) -> None:
        self.port = unused_port()
        self._behind = behind
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.verify_mode = ssl.CERT_REQUIRED
        self._tls.load_verify_locations(f"{certificates}/ca.crt")
        self._tls.load_cert_chain(f"{certificates}/tls.crt", f"{certificates}/tls.key")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        server = asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        asyncio.run_coroutine_threadsafe(server, self._loop).result(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        await asyncio.gather(_pass(reader, inner_writer), _pass(inner_reader, writer))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
