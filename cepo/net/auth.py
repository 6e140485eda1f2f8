"""Bearer tokens of REST and gRPC. Without a configured token there is no check. Health probes never need a token."""

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
"""Paths that need no token: the probes, and the page, because a browser cannot send a token with a URL. The page holds
no data; its script requests the data with the token."""
OPEN_METHODS = "/grpc.health."
HINT = "send 'Authorization: Bearer <token>' with the value of CEPO_TOKEN, or a line of CEPO_TOKEN_FILE"
log = logging.getLogger(__name__)


def call_metadata(token: str) -> list[tuple[str, str]]:
    """The authorization header for gRPC metadata or HTTP; empty without a token."""
    return [("authorization", f"Bearer {token}")] if token else []


class Tokens:
    """The accepted tokens: a fixed one, or the current lines of a file.

    To rotate a token without a restart, add the new token as the second line, then move it to the top, then remove the
    old one. At every moment each process accepts the token that the others send. With an empty or missing file no token
    is accepted.
    """

    def __init__(self, token: str = "", file: str = "") -> None:
        """Does not read the file yet.

        Raises:
            UserError: both a token and a file are given.
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
        """The tokens that are accepted now. This process sends the first."""
        if self._file is not None and (state := _state(self._file)) != self._seen:
            self._seen = state
            try:
                self._tokens = tuple(self._file.read_text().split())
            except (OSError, UnicodeDecodeError):
                self._tokens = ()
            log.log(logging.INFO if self._tokens else logging.ERROR, "CEPO_TOKEN_FILE: %d tokens", len(self._tokens))
        return self._tokens

    def allow(self, header: str) -> bool:
        """Whether an Authorization header has an accepted token. Compares all tokens in constant time."""
        sent = header.encode()
        matches = [hmac.compare_digest(sent, f"Bearer {token}".encode()) for token in self.current()]
        return not self.needed or any(matches)

    def metadata(self) -> list[tuple[str, str]]:
        """The authorization header with the first token."""
        return call_metadata(next(iter(self.current()), ""))


def _state(file: Path) -> tuple[int, ...]:
    """A value that changes whenever the file changes; empty if the file cannot be read."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_ctime_ns, status.st_size, status.st_ino


class RestAuth:
    """ASGI middleware that replies 401 to requests without an accepted token."""

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
    """gRPC interceptor that aborts calls without an accepted token with UNAUTHENTICATED."""

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
