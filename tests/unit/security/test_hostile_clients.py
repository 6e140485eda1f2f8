"""Clients that are slow, stop half way, send endless headers, compress, or lie about their address."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import httpx
import psutil
import pytest

from cepo.net import bodies, serving
from cepo.net.connections import MAX_MESSAGE_BYTES
from cepo.net.settings import Settings
from tests.unit.security.support import LARGE_BYTES, served

HEAD = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n"
SLOW_SECONDS = 30.0
"""Timeout of a reply on a busy machine."""


class Client:
    """A client that sends bytes as they are given."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def reply(self) -> bytes:
        """Everything that the service sends until it closes the connection."""
        async with asyncio.timeout(SLOW_SECONDS):
            with contextlib.suppress(ConnectionError):
                return await self._reader.read()
        return b""

    def leave(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def connected(service: Settings) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.http_port)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


async def answers(service: Settings) -> bool:
    async with httpx.AsyncClient() as web:
        return (await web.get(f"http://127.0.0.1:{service.http_port}/healthz")).text == "ok"


@pytest.mark.parametrize("start", [b"", b"GET /heal", HEAD + b"X-A: b\r\n"], ids=["nothing", "line", "headers"])
async def test_a_head_that_never_ends_is_closed(monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.2)
    async with served() as service, connected(service) as client:
        await client.send(start)
        assert (await client.reply()).startswith(b"HTTP/1.1 408 ")
        assert await answers(service)


async def test_a_head_that_arrives_byte_by_byte_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.2)
    async with served() as service, connected(service) as client:
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                await client.send(b"G")
                await asyncio.sleep(0.02)
        assert time.monotonic() - begun < 10
        assert await answers(service)


async def test_the_second_request_of_a_connection_has_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.3)
    async with served() as service, connected(service) as client:
        await client.send(HEAD + b"Content-Length: 2\r\n\r\nab")
        await asyncio.sleep(0.1)
        await client.send(b"POST /ec")
        replies = await client.reply()
        assert replies.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 408 " in replies


@pytest.mark.parametrize("sent", [b"", b"half"])
async def test_half_a_body_is_given_up(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.2)
    async with served() as service, connected(service) as client:
        await client.send(HEAD + b"Connection: close\r\nContent-Length: 100\r\n\r\n" + sent)
        reply = await client.reply()
        assert reply.startswith(b"HTTP/1.1 408 ")
        assert b"the body did not arrive within 0.2 seconds" in reply
        assert await answers(service)


@pytest.mark.parametrize("kind", [b"application/json", b"text/plain"])
async def test_a_client_that_leaves_in_the_middle_of_a_body_leaves_no_error(
    kind: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with served() as service:
        for size in (0, 1, 1000):
            async with connected(service) as client:
                await client.send(HEAD + b"Content-Type: " + kind + b"\r\nContent-Length: 2000\r\n\r\n" + b"1" * size)
                await asyncio.sleep(0.02)
                client.leave()
        await asyncio.sleep(0.05)
        assert await answers(service)
    assert [record.message for record in caplog.records] == []


async def test_a_client_that_does_not_read_its_reply_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "STALL_SECONDS", 0.2)
    async with served() as service, connected(service) as client:
        await client.send(HEAD.replace(b"POST /echo", b"GET /large") + b"\r\n")
        await asyncio.sleep(0.5)
        assert len(await client.reply()) < LARGE_BYTES
        assert await answers(service)


@pytest.mark.parametrize(
    "flood", [b"a" * 2**16, b"A: b\r\n" * 2**13], ids=["one endless header", "headers without end"]
)
async def test_a_flood_of_headers_is_cut_off_and_takes_no_memory(flood: bytes) -> None:
    async with served() as service, connected(service) as client:
        before, sent = psutil.Process().memory_info().rss, 0
        await client.send(HEAD + b"X-A: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                await client.send(flood)
                sent += len(flood)
        assert sent < 2**24
        assert psutil.Process().memory_info().rss - before < 2**24
        assert await answers(service)


async def test_headers_of_a_common_size_are_accepted() -> None:
    async with served() as service, httpx.AsyncClient() as web:
        headers = {f"x-{number}": "a" * 1000 for number in range(40)}
        assert (await web.get(f"http://127.0.0.1:{service.http_port}/healthz", headers=headers)).status_code == 200


async def test_a_compressed_body_is_refused_before_it_grows() -> None:
    bomb = gzip.compress(bytes(2**24))
    assert len(bomb) < 2**15
    async with served() as service, httpx.AsyncClient() as web:
        address = f"http://127.0.0.1:{service.http_port}/echo"
        for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip"):
            reply = await web.post(address, content=bomb, headers={"Content-Encoding": encoding})
            assert reply.status_code == 415
            assert reply.json()["detail"].endswith("is not supported; send the body without compression")
        assert (await web.post(address, content=b"12", headers={"Content-Encoding": "identity"})).json() == 2


async def test_grpc_bounds_a_message_after_it_is_decompressed() -> None:
    async with served() as service:
        options = [("grpc.max_send_message_length", -1)]
        address, zipped = f"127.0.0.1:{service.grpc_port}", grpc.Compression.Gzip
        async with grpc.aio.insecure_channel(address, options=options, compression=zipped) as connection:
            call = connection.unary_unary("/cepo.v1.VerifierService/Verify")(bytes(MAX_MESSAGE_BYTES + 1))
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_grpc_bounds_the_metadata() -> None:
    async with served() as service, grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}") as connection:
        call = connection.unary_unary("/cepo.v1.VerifierService/Verify")(b"", metadata=(("x", "a" * 2**20),))
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_forwarded_address_does_not_evade_the_rate_limit() -> None:
    async with served(requests_per_second=2.0) as service, httpx.AsyncClient() as web:
        address = f"http://127.0.0.1:{service.http_port}/healthz"
        replies = [await web.get(address, headers={"X-Forwarded-For": f"10.0.0.{number}"}) for number in range(30)]
        assert 429 in {reply.status_code for reply in replies}


async def test_a_websocket_does_not_evade_the_token() -> None:
    upgrade = (
        b"GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with served(token="secret") as service, connected(service) as client:
        await client.send(upgrade)
        assert (await client.reply()).startswith(b"HTTP/1.1 401 ")
