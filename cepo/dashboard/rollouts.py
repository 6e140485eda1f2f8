"""The routes of the rollout browser: searches, and the groups themselves."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Path, Query
from starlette.exceptions import HTTPException

from cepo.dashboard.folder import Watched
from cepo.net.rest import Refusal
from cepo.run.rollout_index import Order, Search

MAX_GROUPS = 64
MAX_FOUND = 200
MAX_STEP = 2**53
"""Larger numbers are not exact in a browser."""

Step = Annotated[int, Path(ge=0, le=MAX_STEP)]
Offset = Annotated[int, Query(ge=0, le=MAX_STEP)]
Source = Annotated[Literal["train", "held-out"], Path(description="training groups of a step, or held-out groups")]
Text = Annotated[str, Query(max_length=300, description="part of a response, prompt, answer or reason")]
Word = Annotated[str, Query(max_length=300, description="a value of /v1/rollouts/summary")]
Reward = Annotated[float | None, Query(allow_inf_nan=False)]


def _search(
    text: Text = "",
    source: Word = "",
    number: Annotated[int | None, Query(ge=0, le=MAX_STEP, description="the step, or the policy version")] = None,
    outcome: Word = "",
    reason: Word = "",
    lowest: Reward = None,
    highest: Reward = None,
    order: Order = "newest",
) -> Search:
    return Search(text, source, number, outcome, reason, lowest, highest, order)


def absent(why: str) -> dict[int | str, dict[str, Any]]:
    """The description of a 404 in the OpenAPI document."""
    return {404: {"model": Refusal, "description": why}}


def add_routes(app: FastAPI, run: Watched) -> None:
    """Adds the routes to the application of a run."""

    @app.get("/v1/steps/{step}/groups", tags=["run"], responses=absent("the run has no such step"))
    def groups(step: Step, offset: Offset = 0, limit: Annotated[int, Query(ge=1, le=MAX_GROUPS)] = 8) -> Any:
        """The groups of a step that the run wrote to rollouts/, with the evidence and advantage of every token."""
        total = run.browser.rollouts.count("train", step)
        if not total and step not in {row["step"] for row in run.steps()}:
            raise HTTPException(404, f"the run has no step {step}")
        return {"step": step, "total": total, "groups": run.browser.rollouts.groups("train", step, offset, limit)}

    @app.get("/v1/rollouts", tags=["run"])
    def rollouts(
        search: Annotated[Search, Depends(_search)],
        offset: Offset = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_FOUND)] = 50,
    ) -> Any:
        """The responses that a search finds, with the end of their prompt and text."""
        total, rows = run.browser.search(search, offset, limit)
        return {"total": total, "rows": rows}

    @app.get("/v1/rollouts/summary", tags=["run"])
    def summary() -> dict[str, Any]:
        """The sources, outcomes and most frequent reasons of all responses, with the number of each."""
        return run.browser.summary()

    @app.get("/v1/rollouts/{source}/{number}/{at}", tags=["run"], responses=absent("the run wrote no such group"))
    def group(source: Source, number: Step, at: Step) -> dict[str, Any]:
        """One group: that at position `at` of a step, or of a policy version's held-out groups."""
        row = run.browser.group(source, number, at)
        if row is None:
            raise HTTPException(404, f"the run wrote no group {at} of {source} {number}")
        return row
