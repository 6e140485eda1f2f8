"""Limits of the body of a REST request: its size, the time that it takes, and the JSON that it may hold."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 16 * 2**20
"""Enough for the longest list that any API accepts, such as 4,096 responses of 4 kB, or for images in a chat."""
BODY_SECONDS = 120.0
"""Timeout of a whole body: 16 MiB at 1.2 Mbit/s."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


class BodyLimit:
    """ASGI middleware that replies 413 once a body exceeds the limit, 408 if it takes too long, 415 if compressed.

    The bytes count, whatever the headers say.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received, ends = 0, False
        deadline = asyncio.get_running_loop().time() + BODY_SECONDS

        async def limited() -> Message:
            nonlocal received, ends
            try:
                async with asyncio.timeout_at(None if ends else deadline):
                    message = await receive()
            except TimeoutError as error:
                detail = f"the body did not arrive within {BODY_SECONDS:g} seconds; send fewer rows at once"
                raise HTTPException(408, detail) from error
            received += len(message.get("body", b""))
            ends = not message.get("more_body", False)
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body is longer than {MAX_BODY_BYTES} bytes; send fewer rows at once")
            return message

        encoding = _header(scope, b"content-encoding")
        if encoding not in ("", "identity"):
            detail = f"Content-Encoding: {encoding[:40]!r} is not supported; send the body without compression"
            await JSONResponse({"detail": detail}, 415)(scope, receive, send)
            return
        with contextlib.suppress(ClientDisconnect):  # in the middle of its body
            await self._app(scope, limited, send)


class StrictJson:
    """ASGI middleware that replies 422 to JSON that parsers do not agree on.

    It refuses NaN and infinity, which JSON does not have; an object with the same key twice, of which parsers take
    different ones; half of a surrogate pair, which no text can hold; and JSON that is nested too deeply to parse.
    Syntax errors are left to the application, which names their position.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "json" not in _header(scope, b"content-type"):
            await self._app(scope, receive, send)
            return
        try:
            body = await _received(receive)
        except HTTPException as error:  # of BodyLimit
            await JSONResponse({"detail": error.detail}, error.status_code)(scope, receive, send)
            return
        if body is None:
            return  # the client left
        if mistake := json_mistake(body):
            await JSONResponse({"detail": mistake}, 422)(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replayed, send)


async def _received(receive: Receive) -> bytes | None:
    """The whole body; None if the client disconnects before its end."""
    parts = []
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
    return None


def json_mistake(body: bytes) -> str:
    r"""What makes JSON ambiguous, with the fix; empty for strict JSON and for text that is not JSON at all.

    Example:
        json_mistake(b'{"reward": NaN}')  # "body: NaN is no number of JSON; leave the field out or send null"
        json_mistake(b'{"text": "\ud800"}')  # "text: '\ud800' is half of a surrogate pair; send both halves"
    """
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
        return next(_halves(value), "") if _SURROGATE.search(text) else ""
    except _Ambiguous as error:
        return str(error)
    except RecursionError:
        return "body: the JSON is nested too deeply; send a flatter value"
    except ValueError:
        return ""


class _Ambiguous(Exception):
    pass


def _no_constant(name: str) -> None:
    raise _Ambiguous(f"body: {name} is no number of JSON; leave the field out or send null")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for at, key in enumerate(keys) if key in keys[:at])
        raise _Ambiguous(f"body: the key {twice[:40]!r} is there twice in one object; send it once")
    return row


def _halves(value: Any, *path: str | int) -> Iterator[str]:
    """What is wrong with each text that holds half of a surrogate pair."""
    match value:
        case dict():
            for key, each in value.items():
                yield from _halves(key, *path)
                yield from _halves(each, *path, key)
        case list():
            for at, each in enumerate(value):
                yield from _halves(each, *path, at)
        case str():
            if half := re.search("[\ud800-\udfff]", value):
                where = ".".join(map(str, path)).encode("ascii", "backslashreplace").decode() or "body"
                yield f"{where}: {half.group()!a} is half of a surrogate pair; send both halves"


def _header(scope: Scope, name: bytes) -> str:
    values = [value for key, value in scope.get("headers", ()) if key == name]
    return values[-1].decode("latin-1").strip().lower() if values else ""
