"""The process of every service: a grpc.aio server with health and reflection, a FastAPI app with `/healthz`, `/readyz`
and `/metrics`, and the work itself, all in one task group. On SIGTERM it drains and exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar

import grpc
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from google.protobuf.message import Message as ProtoMessage
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from cepo.errors import CepoError, PolicyError, Unreachable, UserError, WireError
from cepo.messages.groups import Contract
from cepo.messages.wire import from_proto, to_proto
from cepo.net.auth import TokenInterceptor, Tokens
from cepo.net.connections import GRPC_OPTIONS, check_exposure, listen
from cepo.net.rest import guard
from cepo.net.serving import web_server
from cepo.net.settings import Settings
from cepo.service.metrics import BUILD, READY
from cepo.service.stage import StageLoop
from cepo.service.telemetry import configure_logging
from cepo.service.tracing import TRACER

C = TypeVar("C", bound=Contract)
GRACE_SECONDS = 5.0
STOPPED = 128 + signal.SIGTERM
"""Exit code of a process that was stopped before its work was complete. A supervisor restarts it."""
log = logging.getLogger(__name__)

_GRPC_CODES = {
    UserError: grpc.StatusCode.INVALID_ARGUMENT,
    WireError: grpc.StatusCode.INVALID_ARGUMENT,
    PolicyError: grpc.StatusCode.FAILED_PRECONDITION,
    Unreachable: grpc.StatusCode.UNAVAILABLE,
}
_HTTP_CODES = {UserError: 422, WireError: 422, PolicyError: 409, Unreachable: 503}


@dataclass
class Service:
    """The parts that a service adds to the chassis."""

    name: str
    grpc_name: str
    """Full name of the gRPC service, for health checks and reflection."""
    register: Callable[[grpc.aio.Server], None]
    work: Callable[[asyncio.Event], Coroutine[Any, Any, None]]
    """Runs until the event is set. The process ends when it returns or raises."""
    app: FastAPI = field(default_factory=FastAPI)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    code: int = 0
    """The exit code of the process after the work has returned."""


def stage_service(
    name: str,
    grpc_name: str,
    register: Callable[[grpc.aio.Server], None],
    loop: StageLoop,
    engine: AbstractAsyncContextManager[Any],
    app: FastAPI | None = None,
) -> Service:
    """A service that processes one stream. It is ready once its engine is, and finishes its items before it ends."""
    ready = asyncio.Event()

    async def work(stop: asyncio.Event) -> None:
        try:
            async with engine:
                ready.set()
                await loop.run(stop)
        finally:
            await loop.bus.close()

    return Service(name, grpc_name, register, work, app or FastAPI(), ready)


def unary(contract: type[C], handler: Callable[[C], Awaitable[Contract]]) -> Callable[..., Awaitable[ProtoMessage]]:
    """Wraps a handler as a gRPC method. Errors become status codes."""

    async def call(request: ProtoMessage, context: grpc.aio.ServicerContext) -> ProtoMessage:
        try:
            return to_proto(await handler(from_proto(contract, request)))
        except CepoError as error:
            await abort(context, error)
            raise

    return call


async def abort(context: grpc.aio.ServicerContext, error: CepoError) -> None:
    """Ends a gRPC call with the status code of an error; always raises."""
    await context.abort(_GRPC_CODES.get(type(error), grpc.StatusCode.INTERNAL), str(error))


class _Metrics(Response):
    media_type = CONTENT_TYPE_LATEST


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the chassis handles signals


async def run(service: Service, settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, or until the service's work ends.

    Raises:
        UserError: a port is in use, or a certificate cannot be read.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    listener = bound(settings.host, settings.http_port, "HTTP")
    server, checks = _grpc_server(service, settings)
    await server.start()
    options: dict[str, Any] = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": int(GRACE_SECONDS)}
    web = web_server(rest(service, settings), settings, _Uvicorn, **options)
    async with asyncio.TaskGroup() as group:
        group.create_task(web.serve(sockets=[listener]))
        serving = group.create_task(_serving(service, checks))
        try:
            await service.work(stop)
        finally:
            serving.cancel()
            service.ready.clear()
            await checks.enter_graceful_shutdown()
            await server.stop(GRACE_SECONDS)
            web.should_exit = True


def main(name: str, build: Callable[[Settings], Awaitable[Service]]) -> None:
    """The entry point of a service: reads the settings, configures logs, serves and exits."""

    async def start() -> int:
        settings = Settings.from_environment(name)
        configure_logging(name, settings.log_level)
        check_exposure(settings)  # before the slow load of a model
        if settings.otlp_endpoint:
            TRACER.start(name, settings.otlp_endpoint)
        try:
            service = await build(settings)
            await run(service, settings)
        finally:
            TRACER.stop()
        return service.code

    with mistakes_told(name):
        sys.exit(asyncio.run(start()))


@contextlib.contextmanager
def mistakes_told(name: str) -> Iterator[None]:
    """Turns errors that a user can fix into one line on stderr and exit status 2."""
    try:
        yield
    except BaseExceptionGroup as group:
        mistake = group.subgroup((UserError, Unreachable))
        if mistake is None:
            raise
        _exit(name, mistake)
    except (UserError, Unreachable) as error:
        _exit(name, error)


def _exit(name: str, error: BaseException) -> None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    with contextlib.suppress(OSError):  # on a full disk, where stderr is a log
        print(f"cepo {name}: {error}", file=sys.stderr)
    sys.exit(2)


def _grpc_server(service: Service, settings: Settings) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    server = grpc.aio.server(interceptors=[TokenInterceptor(Tokens.of(settings))], options=GRPC_OPTIONS)
    service.register(server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((service.grpc_name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    bound(settings.host, settings.grpc_port, "gRPC").close()  # otherwise gRPC would print its own lines
    listen(server, f"{settings.host}:{settings.grpc_port}", settings)
    return server, checks


async def _serving(service: Service, checks: health.aio.HealthServicer) -> None:
    status = health_pb2.HealthCheckResponse
    for name in ("", service.grpc_name):
        await checks.set(name, status.NOT_SERVING)
    await service.ready.wait()
    for name in ("", service.grpc_name):
        await checks.set(name, status.SERVING)


def bound(host: str, port: int, kind: str, fix: str = "") -> socket.socket:
    """A socket that is bound to a port.

    Args:
        fix: the advice of the error message; default: set the variable of the port.

    Raises:
        UserError: the port is in use, or may not be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # without it asyncio sets no TCP_NODELAY
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        fix = fix or f"set CEPO_{kind.upper()}_PORT"
        raise UserError(f"{kind} port {host}:{port} cannot be used ({error.strerror}); {fix}") from error
    return bound


def rest(service: Service, settings: Settings) -> FastAPI:
    """Adds the probes, metrics, tokens, limits and error handling of all services to a service's REST app."""
    app = service.app
    app.title = f"cepo {service.name}"
    guard(app, settings)
    READY.set_function(lambda: float(service.ready.is_set()))
    BUILD.labels(version("cepo")).set(1)

    @app.get("/healthz", tags=["operations"], response_class=PlainTextResponse)
    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok")

    not_ready: dict[int | str, dict[str, Any]] = {
        503: {"description": "the service is starting or draining", "content": {"text/plain": {}}}
    }

    @app.get("/readyz", tags=["operations"], response_class=PlainTextResponse, responses=not_ready)
    async def readyz() -> PlainTextResponse:
        return PlainTextResponse("ready") if service.ready.is_set() else PlainTextResponse("not ready", 503)

    @app.get("/metrics", tags=["operations"], response_class=_Metrics)
    async def metrics() -> Response:
        return _Metrics(generate_latest())

    @app.exception_handler(CepoError)
    async def refuse(request: Request, error: CepoError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, _HTTP_CODES.get(type(error), 500))

    return app
