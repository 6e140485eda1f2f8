"""The replies of every service match its OpenAPI schema: schemathesis on toy engines."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from cepo.dashboard.folder import Watched
from cepo.dashboard.rest import application as dashboard
from cepo.net.settings import Settings
from cepo.prompts.images import ImageStore
from cepo.service.chassis import Service, rest
from services.rollout.models import Policies, add_models
from services.teacher.rest import application as teacher
from services.verifier.pool import GraderPool
from services.verifier.rest import application as verifier
from tests.helpers.credit import make_credit, toy_grade
from tests.helpers.exploring import explore
from tests.helpers.runs import make_run, make_status, write_groups
from tests.helpers.serving import served
from tests.helpers.vision import BLANK

TOKEN = "secret"
Made = tuple[FastAPI, AbstractAsyncContextManager[Any] | None]


def make_trainer(folder: Path) -> Made:
    run = make_run(folder / "sums", 3)
    write_groups(run, 1)
    ImageStore(run.images).put(BLANK.data)
    run.write_status(make_status(run, "done", 3))  # the event stream ends with the run
    return dashboard([Watched(run)]), None


def make_teacher(folder: Path) -> Made:
    return teacher(make_credit(grader=toy_grade)), None


def make_verifier(folder: Path) -> Made:
    pool = GraderPool(workers=1)
    return verifier(pool), pool


def make_rollout(folder: Path) -> Made:
    app = FastAPI()
    add_models(app, Policies({"v000001-0123456789ab": object()}), "tiny", 160)
    return app, None


@pytest.mark.parametrize(
    ("make", "token"),
    [(make_trainer, TOKEN), (make_teacher, TOKEN), (make_verifier, TOKEN), (make_rollout, TOKEN), (make_verifier, "")],
)
def test_every_answer_is_one_that_the_schema_tells_of(make: Any, token: str, tmp_path: Path) -> None:
    async def work(stop: asyncio.Event) -> None: ...

    app, engine = make(tmp_path)
    service = Service(make.__name__, "", lambda server: None, work, app)
    service.ready.set()
    with served(rest(service, Settings(token=token)), engine=engine) as url:
        found = explore(url, token, tmp_path, examples=15)
    assert not found, found
