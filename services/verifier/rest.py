"""REST: `POST /v1/verify` takes one object or a list of objects and replies with the same shape."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI
from pydantic import Field, Tag

from cepo.answers.kinds import check_reference
from cepo.errors import UserError
from cepo.net.rest import ONE_OR_MANY, surface
from services.verifier.pool import GraderPool
from services.verifier.rows import Reply, Request

MAX_ROWS = 4096
Body = Annotated[
    Annotated[Request, Tag("one")] | Annotated[list[Request], Field(max_length=MAX_ROWS), Tag("many")], ONE_OR_MANY
]


def application(pool: GraderPool) -> FastAPI:
    """Builds the REST application of the verifier."""
    app = surface()

    @app.post("/v1/verify", tags=["verify"])
    async def verify(body: Body) -> Reply | list[Reply]:
        """Returns a verdict for each row, in order."""
        if isinstance(body, Request):
            return Reply.of((await pool.grade([body.item()]))[0])
        for at, row in enumerate(body):
            try:
                check_reference(row.answer, row.kind)
            except UserError as error:
                raise UserError(f"{at}: {error}") from error
        return [Reply.of(verdict) for verdict in await pool.grade([row.item() for row in body])]

    return app
