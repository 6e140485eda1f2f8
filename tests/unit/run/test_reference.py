"""The reference pages of docs/ are those that the code gives."""

from __future__ import annotations

import re

import pytest
from pydantic import BaseModel

from cepo.algo.variants import ALGORITHMS
from cepo.run.config import RunConfig
from cepo.run.metrics import METRICS, describe
from cepo.run.reference import PAGES
from tests.helpers.factories import RUNS

DOCS = RUNS.parents[1] / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_fresh(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS.parent)
    assert (DOCS / name).read_text() == PAGES[name](), "run `make docs`"


def test_every_key_of_a_run_file_has_a_description() -> None:
    sections = [field.annotation for field in RunConfig.model_fields.values()]
    models = [section for section in sections if isinstance(section, type) and issubclass(section, BaseModel)]
    assert len(models) > 8
    assert not [
        f"{model.__name__}.{key}" for model in models for key, f in model.model_fields.items() if not f.description
    ]


def test_every_option_of_every_method_has_a_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS.parent)
    page = PAGES["algorithms.md"]()
    assert all(f"## {name}\n" in page for name in ALGORITHMS)
    assert not [line for line in page.splitlines() if line.endswith("|  |")]


def test_a_key_is_described_by_itself_or_by_its_beginning() -> None:
    assert describe("queue/rollout_max") == describe("queue/*") == METRICS["The step"]["queue/*"]
    assert describe("credit/delta_mean_correct") == describe("credit/delta_mean_*") != describe("credit/delta_mean")
    assert describe("unheard/of") == ""


def test_every_page_of_the_index_is_there_and_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text()
    assert not [page.name for page in DOCS.glob("*.md") if page.name != "index.md" and f"({page.name})" not in index]


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*DOCS.glob("*.md"), *DOCS.parent.glob("*.md"), DOCS.parent / "deploy" / "README.md"]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())]
    broken = [(page.name, link) for page, link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken
