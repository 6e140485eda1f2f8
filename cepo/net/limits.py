"""Limits of a REST surface on all requests: their rate, and the sites that may call a service on loopback."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

BURST_SECONDS = 2.0
MAX_ADDRESSES = 4096
"""Number of client addresses whose request rates are kept. The least recently active is evicted first."""


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


class LoopbackOnly:
    """ASGI middleware of a service on loopback, which replies 403 to requests that a page of another site made.

    A browser reaches loopback on behalf of any page: directly, with an Origin of that page, or with a Host of the
    page's name after that name was rebound to 127.0.0.1 (DNS rebinding). Both must be names of loopback. Calls of the
    application without a network have no address and pass.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and is_loopback((scope.get("server") or ("",))[0]):
            foreign = _foreign((name, value.decode("latin-1")) for name, value in scope["headers"])
            if foreign:
                detail = (
                    f"{foreign} is not this machine, and the service listens on loopback; call 127.0.0.1, or let the "
                    "proxy in front send Host: localhost and no Origin"
                )
                await JSONResponse({"detail": detail}, 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Whether a name or address, without a port, is this machine. Example: is_loopback("127.8.8.8")."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _foreign(headers: Iterable[tuple[bytes, str]]) -> str:
    """The first Host or Origin that is not loopback, such as "Host: evil.example"; empty if there is none."""
    for name, value in headers:
        url = {b"host": f"//{value}", b"origin": value}.get(name)
        if url is not None and not is_loopback(_host(url)):
            return f"{name.decode().title()}: {value[:100]!r}"
    return ""


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
