"""A real browser and a real teacher on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cepo.messages.groups import RolloutGroup, ScoredGroup
from services.teacher.credit import TokenCredit
from services.verifier.handler import Verifier
from services.verifier.pool import GraderPool
from tests.browser.chromium import Browser
from tests.helpers.credit import make_credit, tiny_scorer, web_application
from tests.helpers.serving import served


@pytest.fixture(scope="module")
def credit() -> TokenCredit:
    """The credit function of a teacher with the tiny model, graded by a real verifier."""

    async def grade(group: RolloutGroup) -> ScoredGroup:
        async with GraderPool(workers=1) as pool:
            return await Verifier(pool).verify(group)

    return make_credit(tiny_scorer(), grade)


@pytest.fixture(scope="module")
def teacher(credit: TokenCredit) -> Iterator[str]:
    """The address of the teacher's page."""
    with served(web_application(credit)) as url:
        yield f"{url}/"


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
