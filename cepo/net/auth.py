"""Bearer tokens on both surfaces. No token at all switches the check off; health probes never need one."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import grpc
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cepo.errors import UserError
from cepo.net.settings import Settings

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz"})
"""Probes, and the page itself: a browser cannot send a token with an address. A page holds no data; it asks for them
with the token."""
OPEN_METHODS = "/grpc.health."
HINT = "send 'Authorization: Bearer <token>' with the value of CEPO_TOKEN, or a line of CEPO_TOKEN_FILE"
log = logging.getLogger(__name__)


def call_metadata(token: str) -> list[tuple[str, str]]:
    """What a client sends, as gRPC metadata or HTTP headers."""
    return [("authorization", f"Bearer {token}")] if token else []


class Tokens:
    """The tokens that are let in: one that is fixed, or the lines of a file as they are now.

    To change a token without a restart, add the new one as the second line, then move it to the top, then drop the old
    one: at every moment each process lets in what the others send. A file that is empty or gone lets nobody in.
    """

    def __init__(self, token: str = "", file: str = "") -> None:
        """Reads nothing yet.

        Raises:
            UserError: a token and a file are given.
        """
        if token and file:
            raise UserError("CEPO_TOKEN and CEPO_TOKEN_FILE are both set; give one of them")
        self._file = Path(file) if file else None
        self._seen: tuple[int, ...] | None = None
        self._tokens: tuple[str, ...] = (token,) if token else ()
        self.needed = bool(token or file)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(settings.token, settings.token_file)

    def current(self) -> tuple[str, ...]:
        """What is let in now; the first is what this process sends."""
        if self._file is not None and (found := _state(self._file)) != self._seen:
            self._seen = found
            try:
                self._tokens = tuple(self._file.read_text().split())
            except (OSError, UnicodeDecodeError):
                self._tokens = ()
            log.log(logging.INFO if self._tokens else logging.ERROR, "CEPO_TOKEN_FILE: %d tokens", len(self._tokens))
        return self._tokens

    def allow(self, header: str) -> bool:
        """Whether an Authorization header carries one of the tokens; each is compared, in constant time."""
        sent = header.encode()
        matches = [hmac.compare_digest(sent, f"Bearer {token}".encode()) for token in self.current()]
        return not self.needed or any(matches)

    def metadata(self) -> list[tuple[str, str]]:
        """`call_metadata` of the first token."""
        return call_metadata(next(iter(self.current()), ""))


def _state(file: Path) -> tuple[int, ...]:
    """Changes whenever the file does; empty for one that cannot be looked at."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ctime_ns, found.st_size, found.st_ino


class RestAuth:
    """ASGI middleware: 401 without a token."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            if not self._tokens.allow(header):
                refusal = JSONResponse(
                    {"detail": f"wrong or missing token; {HINT}"}, 401, {"WWW-Authenticate": "Bearer"}
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """gRPC interceptor: UNAUTHENTICATED without a token."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        header = str(dict(handler_call_details.invocation_metadata or ()).get("authorization", ""))
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(OPEN_METHODS) or self._tokens.allow(header):
            return handler

        async def refuse(request: Any, context: grpc.aio.ServicerContext) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"wrong or missing token; {HINT}")

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                refuse, handler.request_deserializer, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(refuse, handler.request_deserializer, handler.response_serializer)
