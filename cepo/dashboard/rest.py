"""The REST API of the dashboard: the page, and the status, metrics, groups, images, failures and events of a run.

The trainer and `cepo dashboard` serve the same application.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from cepo.dashboard.folder import FINAL, Watched, by_name
from cepo.dashboard.page import page
from cepo.dashboard.rollouts import MAX_STEP, Offset, absent, add_routes
from cepo.net.rest import surface
from cepo.prompts.images import MEDIA_TYPES, checked
from cepo.run.replay import replay

MAX_ROWS = 1000
MAX_FAILURES = 500
POLL_SECONDS = 0.4
KEEP_ALIVE_SECONDS = 15.0
EVENTS = "text/event-stream"
FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}
"""For images: their name is a digest, so their content never changes."""

Since = Annotated[int, Query(ge=0, le=MAX_STEP, description="the first step to return")]
Sha256 = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="one of a group's `images`")]
Name = Annotated[str, Query(max_length=300, description="a name from /v1/runs; default: the run itself")]


_PICTURE = absent("the run has no such image") | {200: {"content": {each: {} for each in MEDIA_TYPES.values()}}}


def application(watched: Sequence[Watched]) -> FastAPI:
    """The application for a run, the first of `watched`, and the runs that it is compared with."""
    app, runs, run = surface(), by_name(watched), watched[0]

    @app.get("/", tags=["run"], response_class=HTMLResponse)
    async def dashboard() -> HTMLResponse:
        """The dashboard page."""
        return HTMLResponse(page())

    @app.get("/v1/status", tags=["run"])
    async def status() -> dict[str, Any]:
        """The trainer's current phase and step, and the last row of metrics."""
        return run.status()

    @app.get("/v1/runs", tags=["run"])
    async def names() -> list[dict[str, Any]]:
        """The run, and the runs that it is compared with."""
        return [{"name": name, **each.summary()} for name, each in runs.items()]

    @app.get("/v1/metrics", tags=["run"], responses=absent("no run of that name is shown here"))
    def metrics(since: Since = 0, limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = MAX_ROWS, run: Name = "") -> Any:
        """Rows of metrics from a step on. `next` is the step at which the next page begins; null at the end."""
        rows = [row for row in _named(runs, run).steps() if row["step"] >= since]
        return {"rows": rows[:limit], "next": rows[limit]["step"] if len(rows) > limit else None}

    @app.get("/v1/images/{sha256}", tags=["run"], response_class=Response, responses=_PICTURE)
    def image(sha256: Sha256) -> Response:
        """An image of the run's problems, by its sha256."""
        data = run.image(sha256)
        if data is None:
            raise HTTPException(404, "the run has no such image")
        return Response(data, media_type=checked(data).media_type, headers=FOR_EVER)

    @app.get("/v1/failures", tags=["run"])
    def failures(
        since: Since = 0, offset: Offset = 0, limit: Annotated[int, Query(ge=1, le=MAX_FAILURES)] = 100
    ) -> Any:
        """Groups and samples that failed, with the reason; the newest first."""
        rows = [row for row in reversed(run.given_up()) if row.get("step", 0) >= since]
        return {"total": len(rows), "failures": rows[offset : offset + limit]}

    @app.get("/v1/replay", tags=["run"])
    def replayed() -> dict[str, Any]:
        """The responses to the same held-out problems at several policy versions."""
        return replay(run.run.path)

    add_routes(app, run)

    @app.get("/v1/events", tags=["run"], response_class=StreamingResponse, responses={200: {"content": {EVENTS: {}}}})
    async def events(since: Since = 0) -> StreamingResponse:
        """Server-sent events: `row` (from step `since` on), `status`, `failures` and `restart`, until the run ends."""
        return StreamingResponse(_events(run, since), media_type=EVENTS, headers={"Cache-Control": "no-store"})

    return app


def _named(runs: dict[str, Watched], name: str) -> Watched:
    if name and name not in runs:
        raise HTTPException(404, f"no run {name!r} is shown here; give one of: {', '.join(runs)}")
    return runs[name] if name else next(iter(runs.values()))


async def _events(run: Watched, since: int) -> AsyncGenerator[str, None]:
    """The events of a run. `restart` means that the trainer repeats steps: clients must request the rows again."""
    rows = await asyncio.to_thread(run.steps)
    generation, sent = run.metrics.generation, sum(row["step"] < since for row in rows)
    failed, said, quiet = -1, "", 0.0
    while True:
        status = await asyncio.to_thread(run.status)  # before the rows: once a run has ended, no row is missing
        rows = await asyncio.to_thread(run.steps)
        parts: list[str] = []
        if run.metrics.generation != generation:
            generation, sent = run.metrics.generation, len(rows)
            parts.append(_event("restart", {}))
        parts += [_event("row", row) for row in rows[sent:]]
        sent = len(rows)
        if failed != (failed := len(await asyncio.to_thread(run.given_up))):
            parts.append(_event("failures", {"total": failed}))
        shown = {key: value for key, value in status.items() if key not in ("time", "metrics")}
        if said != (said := json.dumps(shown)):
            parts.append(_event("status", shown))
        if quiet >= KEEP_ALIVE_SECONDS and not parts:
            parts.append(": nothing new\n\n")
        quiet = 0.0 if parts else quiet + POLL_SECONDS
        if parts:
            yield "".join(parts)
        if status.get("phase") in FINAL:
            return
        await asyncio.sleep(POLL_SECONDS)


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
