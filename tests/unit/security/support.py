"""A service without an engine in the chassis, and its clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from fastapi import FastAPI, Request, Response

from cepo.messages.groups import Outcome, RolloutGroup, ScoredGroup, Verdict
from cepo.messages.wire import to_proto
from cepo.net.auth import Tokens
from cepo.net.connections import channel
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2_grpc
from cepo.service.chassis import Service, run, unary
from tests.helpers.factories import make_group
from tests.helpers.processes import unused_port

LARGE_BYTES = 2**25
UNAVAILABLE, UNAUTHENTICATED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED


async def judge(group: RolloutGroup) -> ScoredGroup:
    """A verifier that grades every response as wrong."""
    wrong = Verdict(outcome=Outcome.WRONG, reward=0.0, accuracy=0.0)
    return ScoredGroup(rollout=group, verdicts=(wrong,) * len(group.completions))


class Servicer(services_pb2_grpc.VerifierServiceServicer):
    Verify = staticmethod(unary(RolloutGroup, judge))


@asynccontextmanager
async def served(**changes: Any) -> AsyncIterator[Settings]:
    """Runs a toy verifier; yields its settings."""
    settings = Settings(grpc_port=unused_port(), http_port=unused_port(), **changes)
    done, app = asyncio.Event(), FastAPI()

    @app.post("/echo")
    async def echo(request: Request) -> int:
        """Returns the length of the body."""
        return len(await request.body())

    @app.get("/large")
    async def large() -> Response:
        """Returns more than the buffers of a connection hold."""
        return Response(bytes(LARGE_BYTES))

    async def work(stop: asyncio.Event) -> None:
        service.ready.set()
        await done.wait()

    def register(server: grpc.aio.Server) -> None:
        services_pb2_grpc.add_VerifierServiceServicer_to_server(Servicer(), server)

    service = Service("toy", "cepo.v1.VerifierService", register, work, app)
    running = asyncio.create_task(run(service, settings))
    try:
        while not running.done():
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", settings.http_port)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.01)
        yield settings
    finally:
        done.set()
        await running


async def verify(service: Settings, caller: Settings) -> grpc.StatusCode:
    """The error of a gRPC call for a verdict."""
    async with channel(f"127.0.0.1:{service.grpc_port}", caller) as connection:
        call = services_pb2_grpc.VerifierServiceStub(connection).Verify(
            to_proto(make_group()), metadata=Tokens.of(caller).metadata(), timeout=60.0
        )
        return await call.code()
