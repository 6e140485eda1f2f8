"""Bearer tokens on both surfaces. An empty token switches the check off; health probes never need one."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz"})
"""Probes, and the page itself: a browser cannot send a token with an address. A page holds no data; it asks for them
with the token."""
OPEN_METHODS = "/grpc.health."
HINT = "send 'Authorization: Bearer <token>' with the value of CEPO_TOKEN"


def allowed(token: str, header: str) -> bool:
    """Whether an Authorization header carries the token; compared in constant time."""
    return not token or hmac.compare_digest(header.encode(), f"Bearer {token}".encode())


def call_metadata(token: str) -> list[tuple[str, str]]:
    """gRPC metadata a client sends."""
    return [("authorization", f"Bearer {token}")] if token else []


class RestAuth:
    """ASGI middleware: 401 without the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            if not allowed(self._token, header):
                refusal = JSONResponse(
                    {"detail": f"wrong or missing token; {HINT}"}, 401, {"WWW-Authenticate": "Bearer"}
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """gRPC interceptor: UNAUTHENTICATED without the token."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        header = dict(handler_call_details.invocation_metadata or ()).get("authorization", "")
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(OPEN_METHODS) or allowed(self._token, str(header)):
            return handler

        async def refuse(request: Any, context: grpc.aio.ServicerContext) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"wrong or missing token; {HINT}")

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                refuse, handler.request_deserializer, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(refuse, handler.request_deserializer, handler.response_serializer)
