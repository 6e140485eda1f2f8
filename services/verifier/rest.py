"""REST: `POST /v1/verify`, one object or a list of them, answered in kind."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.verifier.pool import GraderPool
from services.verifier.rows import Reply, Request

MAX_BODY_BYTES = 16 * 2**20
MAX_ROWS = 4096


class BodyLimit:
    """ASGI middleware: 413 as soon as a body is longer than `max_bytes`, whatever its header says."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
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


def application(pool: GraderPool) -> FastAPI:
    """The verifier's REST surface."""
    app = FastAPI()
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)

    @app.post("/v1/verify", tags=["verify"])
    async def verify(body: Request | Annotated[list[Request], Field(max_length=MAX_ROWS)]) -> Reply | list[Reply]:
        """A verdict for each row, in order."""
        if isinstance(body, Request):
            return Reply.of((await pool.grade([body.item()]))[0])
        return [Reply.of(verdict) for verdict in await pool.grade([row.item() for row in body])]

    return app
