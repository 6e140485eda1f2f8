"""The REST route of a run that is fed from outside: `POST /v1/groups`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from cepo.net.rest import Refusal
from services.trainer.outside.intake import Intake
from services.trainer.outside.sent import SentGroup, TakenGroup

_RESPONSES: dict[int | str, dict[str, Any]] = {
    409: {"model": Refusal, "description": "the policy is not one that the step may train on"},
    503: {"model": Refusal, "description": "the run has not started"},
}


def add_groups(app: FastAPI, intake: Intake) -> None:
    """Adds the route to the trainer's application."""

    @app.post("/v1/groups", tags=["run"], responses=_RESPONSES)
    async def take(body: SentGroup) -> TakenGroup:
        """Takes a group of responses that was sampled elsewhere; the same `id` again returns the same place."""
        return await intake.take(body)
