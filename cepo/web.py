"""What REST surfaces share: tokens, bounds on body and rate, and one line that names the wrong field of a request."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cepo.auth import RestAuth, Tokens, document
from cepo.settings import Settings

MAX_BODY_BYTES = 16 * 2**20
"""A full list of any surface fits: 4,096 responses of 4 kB to grade, or images in a chat."""
BURST_SECONDS = 2.0
MAX_ADDRESSES = 4096
"""Whose rates are kept; the one that was silent longest is forgotten first."""


class BodyLimit:
    """ASGI middleware: 413 as soon as a body is longer than the limit, whatever its header says."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, f"the body is longer than {self._max_bytes} bytes; send fewer rows at once")
            return message

        await self._app(scope, limited, send)


class RateLimit:
    """ASGI middleware: 429 to an address that sends more than `per_second`; a token bucket for each.

    It stands before the token check, so that tokens cannot be guessed quickly, and guards the event loop, on which a
    process also tells Redis that it is still at its groups.
    """

    def __init__(self, app: ASGIApp, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._rate = per_second
        self._burst = max(1.0, per_second * BURST_SECONDS)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and since when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            wait_seconds = self._take(scope["client"][0] if scope.get("client") else "")
            if wait_seconds > 0:
                refusal = {"detail": f"more than {self._rate:g} requests a second; send several rows in one"}
                retry = {"Retry-After": str(math.ceil(wait_seconds))}
                await JSONResponse(refusal, 429, retry)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _take(self, address: str) -> float:
        """Takes one request out of an address's bucket; seconds until there is one, if there is none now."""
        now = self._clock()
        left, since = self._buckets.pop(address, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._rate)
        allowed = left >= 1.0
        self._buckets[address] = (left - allowed, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self._rate


def guard(app: FastAPI, settings: Settings) -> None:
    """Puts the limits and the token check before an app, and the tokens into its OpenAPI."""
    app.add_middleware(BodyLimit)
    app.add_middleware(RestAuth, tokens=Tokens.of(settings))
    app.add_middleware(RateLimit, per_second=settings.requests_per_second)
    document(app)


def first_mistake(errors: Sequence[Any], *, unnamed: str = "body") -> str:
    """The first of pydantic's errors as `field.0.name: what is wrong`.

    Args:
        errors: of `ValidationError.errors()`; at least one.
        unnamed: what a mistake without a field is about.
    """
    first = errors[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{'.'.join(map(str, first['loc'])) or unnamed}: {message}"
