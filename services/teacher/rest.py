"""REST: `POST /v1/credit`, answered as JSON, as a stream of JSON lines or as a page; `GET /`, the heat map page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Header
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import Discriminator, Field, Tag, TypeAdapter
from starlette.requests import Request

from cepo.credit import MAX_BATCH, CreditReply, CreditRequest, Refusal
from cepo.errors import CepoError, UserError
from cepo.web import first_mistake
from services.teacher.credit import TokenCredit
from services.teacher.page import live_page, standalone_page

JSON_LINES = "application/x-ndjson"
HTML = "text/html"

Body = Annotated[
    Annotated[CreditRequest, Tag("one")]
    | Annotated[list[CreditRequest], Field(min_length=1, max_length=MAX_BATCH), Tag("many")],
    Discriminator(lambda body: "many" if isinstance(body, list) else "one"),
]
_REPLIES: TypeAdapter[CreditReply | list[CreditReply]] = TypeAdapter(CreditReply | list[CreditReply])
_CONTENT = {JSON_LINES: {"schema": {"type": "string"}}, HTML: {"schema": {"type": "string"}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": _CONTENT, "description": "JSON lines hold a reply, or a refusal, for each request, in order"},
    409: {"model": Refusal, "description": "the policy is not to be had"},
    413: {"model": Refusal, "description": "the body is too long"},
    422: {"model": Refusal, "description": "the field that is wrong"},
    503: {"model": Refusal, "description": "the verifier or the trainer does not answer"},
}


def application(credit: TokenCredit) -> FastAPI:
    """The teacher's REST surface."""
    app = FastAPI()

    @app.get("/", tags=["credit"], response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        """The heat map page."""
        return HTMLResponse(live_page())

    @app.post("/v1/credit", tags=["credit"], response_model=CreditReply | list[CreditReply], responses=_RESPONSES)
    async def score(body: Body, accept: Annotated[str, Header()] = "") -> Response:
        """Every token's credit: one request or a list of them, answered in kind; `Accept` chooses the form."""
        if JSON_LINES in accept:
            return StreamingResponse(_lines(credit, body if isinstance(body, list) else [body]), media_type=JSON_LINES)
        if HTML in accept:
            if isinstance(body, list):
                raise UserError("a page shows one request; send an object, not a list")
            return HTMLResponse(standalone_page(body, await credit(body)))
        replies = [await credit(each) for each in body] if isinstance(body, list) else await credit(body)
        return Response(_REPLIES.dump_json(replies), media_type="application/json")

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": first_mistake([_unwrapped(e) for e in error.errors()])}, 422)

    return app


def _unwrapped(error: dict[str, Any]) -> dict[str, Any]:
    """A mistake with the place as the user wrote it: without FastAPI's and the union's own words."""
    place = [part for part in error["loc"][:2] if part not in ("body", "one", "many")]
    return {**error, "loc": (*place, *error["loc"][2:])}


async def _lines(credit: TokenCredit, requests: Sequence[CreditRequest]) -> AsyncIterator[str]:
    for request in requests:
        try:
            reply: CreditReply | Refusal = await credit(request)
        except CepoError as error:
            reply = Refusal(detail=str(error))
        yield reply.model_dump_json() + "\n"
