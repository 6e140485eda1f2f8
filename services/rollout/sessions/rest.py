"""`POST /v1/sessions/NAME/finish`, and the trainer as sessions need it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from cepo.errors import Unreachable, UserError
from cepo.messages.groups import Message, SessionTerms
from cepo.messages.wire import from_proto
from cepo.net.rest import Refusal
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2
from cepo.service.fetching import ask_trainer
from services.rollout.sessions.book import FinishedSession, FinishSession, Sessions

WAIT_SECONDS = 300.0
"""How long the first turn of a group waits for the policy of the next step."""
POLL_SECONDS = 0.5
_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": dict[str, Any], "description": "the body cannot be read, as vLLM's routes say it"},
    409: {"model": Refusal, "description": "the run does not train on the group"},
    422: {"model": Refusal, "description": "the session is not open, or a field is invalid"},
    503: {"model": Refusal, "description": "the trainer does not answer"},
}


def trainer_sessions(settings: Settings) -> Sessions:
    """Sessions whose groups go to the trainer of the settings."""

    async def terms() -> SessionTerms:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return from_proto(SessionTerms, await ask_trainer(settings, "Terms", services_pb2.TermsRequest()))
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(POLL_SECONDS)

    async def send(body: dict[str, Any]) -> dict[str, Any]:
        reply = await ask_trainer(settings, "TakeGroup", services_pb2.OutsideGroup(json=json.dumps(body)))
        return dict(json.loads(reply.json))

    return Sessions(terms, send)


def add_sessions(app: FastAPI, sessions: Sessions) -> None:
    """Adds the route to the rollout service's application."""

    @app.post("/v1/sessions/{name}/finish", tags=["sessions"], responses=_RESPONSES)
    async def finish(name: str, body: FinishSession) -> FinishedSession:
        """Closes a session. The last session of a group sends the group to the trainer; may be repeated."""
        return await sessions.finish(name, body)


def messages_of(body: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages of a chat completion; the first holds the `tools` that the request declares.

    Raises:
        UserError: a message holds something other than text.
    """
    messages, tools = [], {"tools": body["tools"]} if body.get("tools") else {}
    for at, turn in enumerate(body["messages"]):
        extra = {key: value for key, value in turn.items() if key not in ("role", "content") and value is not None}
        extra |= tools if at == 0 else {}
        content = turn.get("content") or ""
        if isinstance(content, list):
            if any(part.get("type") != "text" for part in content):
                raise UserError(f"messages.{at}.content: a session takes text alone; leave images out")
            content = "".join(part["text"] for part in content)
        text = json.dumps(extra) if extra else ""
        try:
            messages.append(Message(role=turn["role"], content=content, extra=text))
        except ValueError as error:
            raise UserError(f"messages.{at}: the message cannot be kept: {error}") from error
    return tuple(messages)
