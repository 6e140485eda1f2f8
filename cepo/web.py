"""What REST surfaces share: a bound on the body, and one line that names the field of a request that is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


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


def first_mistake(errors: Sequence[Any], *, unnamed: str = "body") -> str:
    """The first of pydantic's errors as `field.0.name: what is wrong`.

    Args:
        errors: of `ValidationError.errors()`; at least one.
        unnamed: what a mistake without a field is about.
    """
    first = errors[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{'.'.join(map(str, first['loc'])) or unnamed}: {message}"
