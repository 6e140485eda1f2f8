"""A real browser and a real teacher on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import uvicorn

from cepo.contracts import RolloutGroup, ScoredGroup
from services.teacher.credit import TokenCredit
from services.verifier.handler import Verifier
from services.verifier.pool import GraderPool
from tests.browser.chromium import Browser
from tests.credit_support import make_credit, tiny_scorer, web_application


@pytest.fixture(scope="module")
def credit() -> TokenCredit:
    """The tiny model and the verifier with its workers."""

    async def grade(group: RolloutGroup) -> ScoredGroup:
        async with GraderPool(workers=1) as pool:
            return await Verifier(pool).verify(group)

    return make_credit(tiny_scorer(), grade)


@pytest.fixture(scope="module")
def teacher(credit: TokenCredit) -> Iterator[str]:
    """The address of its page."""
    server = uvicorn.Server(uvicorn.Config(web_application(credit), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture
def page(browser: Browser, teacher: str) -> Iterator[Browser]:
    browser.size(1280, 900)
    browser.scheme("light")
    browser.open(teacher)
    yield browser
    assert browser.failures() == []
