"""Shared parts of the REST APIs: tokens, limits of body size and request rate, and errors that name the field."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Discriminator
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cepo.errors import first_mistake
from cepo.net.auth import OPEN_PATHS, RestAuth, Tokens
from cepo.net.settings import Settings

MAX_BODY_BYTES = 16 * 2**20
"""Enough for the longest list that any API accepts, such as 4,096 responses of 4 kB, or for images in a chat."""
BURST_SECONDS = 2.0
MAX_ADDRESSES = 4096
"""Number of client addresses whose request rates are kept. The least recently active is evicted first."""

ONE_OR_MANY = Discriminator(lambda body: "many" if isinstance(body, list) else "one")
"""Distinguishes a body that is an object (tag `one`) from a list (tag `many`), so that errors name the right field."""
_OWN_WORDS = ("body", "query", "path", "header", "one", "many")
_REFUSALS = {
    "400": ("the body is not text", True),
    "401": ("wrong or missing token", False),
    "413": ("the body is too long", True),
    "429": ("too many requests from one address", False),
}
"""Replies that the middleware can give, by status: the description, and whether only a request with a body gets it."""


class Refusal(BaseModel):
    """The reason why a request failed: the field and the fix."""

    model_config = ConfigDict(frozen=True)

    detail: str


def surface() -> FastAPI:
    """A FastAPI application whose validation errors are one line with status 422."""
    app = FastAPI(responses={422: {"model": Refusal, "description": "the invalid field"}})

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        sent = request.headers.get("content-type", "")
        if first["loc"][0] == "body" and isinstance(error.body, bytes):  # FastAPI did not parse it as JSON
            detail = f"Content-Type: the body was sent as {sent or 'nothing'!r}; send JSON, as application/json"
        elif first["type"] == "json_invalid":
            detail = f"body: invalid JSON at character {first['loc'][-1]}: {first['ctx']['error']}"
        else:
            detail = first_mistake([_unwrapped(first)])
        return JSONResponse({"detail": detail}, 422)

    return app


class BodyLimit:
    """ASGI middleware that replies 413 as soon as the received body exceeds the limit, whatever its header says."""

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
    """ASGI middleware that replies 429 to an address with more than `per_second` requests, by a token bucket each.

    It runs before the token check, so that tokens cannot be guessed quickly. It also protects the event loop, on which
    the process renews its claims in Redis.
    """

    def __init__(self, app: ASGIApp, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._rate = per_second
        self._burst = max(1.0, per_second * BURST_SECONDS)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left; last time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            wait_seconds = self._take(scope["client"][0] if scope.get("client") else "")
            if wait_seconds > 0:
                refusal = {"detail": f"more than {self._rate:g} requests per second; send several rows in one"}
                retry = {"Retry-After": str(math.ceil(wait_seconds))}
                await JSONResponse(refusal, 429, retry)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _take(self, address: str) -> float:
        """Takes one request from an address's bucket. Returns 0, or the seconds to wait if the bucket is empty."""
        now = self._clock()
        left, since = self._buckets.pop(address, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._rate)
        allowed = left >= 1.0
        self._buckets[address] = (left - allowed, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self._rate


def guard(app: FastAPI, settings: Settings) -> None:
    """Adds the limits and the token check to an app, and documents them in its OpenAPI schema."""
    app.add_middleware(BodyLimit)
    tokens = Tokens.of(settings)
    app.add_middleware(RestAuth, tokens=tokens)
    app.add_middleware(RateLimit, per_second=settings.requests_per_second)
    _describe(app, tokens)


def _describe(app: FastAPI, tokens: Tokens) -> None:
    """Adds the token, required except on OPEN_PATHS, and the replies of the middleware to the app's OpenAPI schema."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        schema = build()
        components = schema.setdefault("components", {})
        components.setdefault("schemas", {})["Refusal"] = Refusal.model_json_schema()
        if tokens.needed:
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}]
        for path, operations in schema["paths"].items():
            is_open = not tokens.needed or path in OPEN_PATHS
            for operation in operations.values():
                if tokens.needed and is_open:
                    operation["security"] = []
                for code, (why, of_a_body) in _REFUSALS.items():
                    if (not of_a_body or "requestBody" in operation) and not (code == "401" and is_open):
                        operation["responses"].setdefault(code, _refusal(why))
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _refusal(why: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    return {"description": why, "content": content}


def _unwrapped(error: dict[str, Any]) -> dict[str, Any]:
    """An error whose location is that of the user's JSON, without the parts that FastAPI and the union add."""
    place = [part for part in error["loc"][:2] if part not in _OWN_WORDS]
    return {**error, "loc": (*place, *error["loc"][2:])}
