"""Shared parts of the REST APIs: tokens, limits, and errors that name the field."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Discriminator
from starlette.requests import Request
from starlette.responses import JSONResponse

from cepo.errors import first_mistake
from cepo.net.auth import OPEN_PATHS, RestAuth, Tokens
from cepo.net.bodies import BodyLimit, StrictJson
from cepo.net.limits import LoopbackOnly, RateLimit, is_loopback
from cepo.net.settings import Settings

ONE_OR_MANY = Discriminator(lambda body: "many" if isinstance(body, list) else "one")
"""Distinguishes a body that is an object (tag `one`) from a list (tag `many`), so that errors name the right field."""
_OWN_WORDS = ("body", "query", "path", "header", "one", "many")
_REFUSALS = {
    "400": ("the body is not text", True),
    "401": ("wrong or missing token", False),
    "403": ("Host or Origin is another site", False),
    "408": ("the body does not arrive in time", True),
    "413": ("the body is too long", True),
    "415": ("the body is compressed", True),
    "429": ("too many requests from one address", False),
}
"""Replies that the middleware can give, by status: the description, and whether only a request with a body gets it."""


class Refusal(BaseModel):
    """The reason why a request failed: the field and the fix."""

    model_config = ConfigDict(frozen=True)

    detail: str


def surface() -> FastAPI:
    """A FastAPI application whose validation errors are one line with status 422."""
    app = FastAPI(responses={422: {"model": Refusal, "description": "the invalid field"}})

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        sent = request.headers.get("content-type", "")
        if first["loc"][0] == "body" and isinstance(error.body, bytes):  # FastAPI did not parse it as JSON
            detail = f"Content-Type: the body was sent as {sent or 'nothing'!r}; send JSON, as application/json"
        elif first["type"] == "json_invalid":
            detail = f"body: invalid JSON at character {first['loc'][-1]}: {first['ctx']['error']}"
        else:
            detail = first_mistake([_unwrapped(first)])
        return JSONResponse({"detail": detail}, 422)

    return app


def guard(app: FastAPI, settings: Settings) -> None:
    """Adds the limits and the token check to an app, and documents them in its OpenAPI schema."""
    app.add_middleware(StrictJson)
    app.add_middleware(BodyLimit)
    tokens = Tokens.of(settings)
    app.add_middleware(RestAuth, tokens=tokens)
    app.add_middleware(RateLimit, per_second=settings.requests_per_second)
    if is_loopback(settings.host):
        app.add_middleware(LoopbackOnly)
    _describe(app, tokens)


def _describe(app: FastAPI, tokens: Tokens) -> None:
    """Adds the token, required except on OPEN_PATHS, and the replies of the middleware to the app's OpenAPI schema."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        schema = build()
        components = schema.setdefault("components", {})
        components.setdefault("schemas", {})["Refusal"] = Refusal.model_json_schema()
        if tokens.needed:
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}]
        for path, operations in schema["paths"].items():
            is_open = not tokens.needed or path in OPEN_PATHS
            for operation in operations.values():
                if tokens.needed and is_open:
                    operation["security"] = []
                for code, (why, of_a_body) in _REFUSALS.items():
                    if (not of_a_body or "requestBody" in operation) and not (code == "401" and is_open):
                        operation["responses"].setdefault(code, _refusal(why))
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _refusal(why: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    return {"description": why, "content": content}


def _unwrapped(error: dict[str, Any]) -> dict[str, Any]:
    """An error whose location is that of the user's JSON, without the parts that FastAPI and the union add."""
    place = [part for part in error["loc"][:2] if part not in _OWN_WORDS]
    return {**error, "loc": (*place, *error["loc"][2:])}
