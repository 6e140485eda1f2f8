"""The teacher's REST routes: `POST /v1/credit` returns JSON, JSON lines or a page; `GET /` is the heat map page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Header
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from pydantic import Field, Tag, TypeAdapter

from cepo.credit import MAX_BATCH, CreditReply, CreditRequest
from cepo.errors import CepoError, UserError
from cepo.net.rest import ONE_OR_MANY, Refusal, surface
from services.teacher.credit import TokenCredit
from services.teacher.page import live_page, standalone_page

JSON_LINES = "application/x-ndjson"
HTML = "text/html"

Body = Annotated[
    Annotated[CreditRequest, Tag("one")]
    | Annotated[list[CreditRequest], Field(min_length=1, max_length=MAX_BATCH), Tag("many")],
    ONE_OR_MANY,
]
_REPLIES: TypeAdapter[CreditReply | list[CreditReply]] = TypeAdapter(CreditReply | list[CreditReply])
_CONTENT = {JSON_LINES: {"schema": {"type": "string"}}, HTML: {"schema": {"type": "string"}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": _CONTENT, "description": "JSON lines hold a reply or an error for each request, in order"},
    409: {"model": Refusal, "description": "the policy cannot be loaded"},
    503: {"model": Refusal, "description": "the verifier or the trainer does not answer"},
}


def application(credit: TokenCredit) -> FastAPI:
    """Returns the teacher's REST application."""
    app = surface()

    @app.get("/", tags=["credit"], response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        """The heat map page."""
        return HTMLResponse(live_page())

    @app.post("/v1/credit", tags=["credit"], response_model=CreditReply | list[CreditReply], responses=_RESPONSES)
    async def score(body: Body, accept: Annotated[str, Header()] = "") -> Response:
        """The credit of every token: a request returns a reply, a list returns a list; `Accept` chooses the format."""
        if JSON_LINES in accept:
            return StreamingResponse(_lines(credit, body if isinstance(body, list) else [body]), media_type=JSON_LINES)
        if HTML in accept:
            if isinstance(body, list):
                raise UserError("a page shows one request; send an object instead of a list")
            return HTMLResponse(standalone_page(body, await credit(body)))
        replies = await credit.each(body) if isinstance(body, list) else await credit(body)
        return Response(_REPLIES.dump_json(replies), media_type="application/json")

    return app


async def _lines(credit: TokenCredit, requests: Sequence[CreditRequest]) -> AsyncIterator[str]:
    for request in requests:
        try:
            reply: CreditReply | Refusal = await credit(request)
        except CepoError as error:
            reply = Refusal(detail=str(error))
        yield reply.model_dump_json() + "\n"
