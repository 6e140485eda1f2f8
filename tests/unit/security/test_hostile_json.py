"""JSON that parsers do not agree on, or that no text can hold: one line of 4xx from every service, never a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from cepo.dashboard.folder import Watched
from cepo.dashboard.rest import application as dashboard
from cepo.net.bodies import json_mistake
from cepo.net.rest import guard
from cepo.net.settings import Settings
from services.verifier.pool import GraderPool
from services.verifier.rest import application as verifier
from tests.helpers.credit import make_body, make_credit, web_application
from tests.helpers.runs import make_run

VERIFY = {"response": "\\boxed{1}", "answer": "1"}
JSON = {"Content-Type": "application/json"}


def client(name: str, folder: Path | None = None) -> httpx.AsyncClient:
    """A client of a service, without a network. No request of these tests reaches the graders."""
    app: FastAPI
    if name == "verify":
        app = verifier(GraderPool(workers=1))
    elif name == "credit":
        app = web_application(make_credit())
    else:
        assert folder is not None
        app = dashboard([Watched(make_run(folder / "run", 1))])
    if name != "credit":
        guard(app, Settings())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=f"http://{name}")


def bodies(good: str) -> Iterator[tuple[bytes, str]]:
    """Hostile bodies made of a valid one, and what the refusal says."""
    key, rest = next(iter(json.loads(good))), good[1:]
    for number in ("NaN", "Infinity", "-Infinity"):
        yield f'{{"x": [{{"y": {number}}}], {rest}'.encode(), f"{number} is no number of JSON"
    yield f'{{"{key}": 1, {rest}'.encode(), f"the key '{key}' is there twice in one object"
    yield f'{{"x": {{"a": 1, "b": 2, "\\u0061": 3}}, {rest}'.encode(), "the key 'a' is there twice"
    yield f'{{"x": {"[" * 100_000}{"]" * 100_000}, {rest}'.encode(), "nested too deeply"
    yield b"[" * 2**20, "nested too deeply"
    yield f'{{"x": {"9" * 5000}, {rest}'.encode(), ""
    yield f'{{"x": 1e999, {rest}'.encode(), ""
    yield f'{{"\\ud800": 1, {rest}'.encode(), ""
    yield f'{{"x": "\\udfff\\ud800", {rest}'.encode(), ""
    yield b'{"x": "\xff\xfe\xed\xa0\x80"}', ""
    yield good.encode()[:-1], ""
    yield good.encode() + good.encode(), ""
    yield b"\0" * 100, ""
    yield b"", ""
    yield b"null", ""


@pytest.mark.parametrize("name", ["verify", "credit"])
async def test_hostile_json_is_refused_in_one_line(name: str) -> None:
    path, body = ("/v1/verify", VERIFY) if name == "verify" else ("/v1/credit", make_body())
    async with client(name) as web:
        for content, says in bodies(json.dumps(body)):
            reply = await web.post(path, content=content, headers=JSON)
            assert 400 <= reply.status_code < 500, content[:80]
            assert list(reply.json()) == ["detail"]
            assert says in reply.json()["detail"], content[:80]
            assert len(reply.json()["detail"].splitlines()) == 1


@pytest.mark.parametrize("field", ["response", "answer", "kind", "0.response"])
async def test_half_a_surrogate_pair_is_refused_by_its_field(field: str) -> None:
    row = {**VERIFY, field.rpartition(".")[2]: "\ud800"}
    async with client("verify") as web:
        reply = await web.post("/v1/verify", content=json.dumps([row] if "." in field else row), headers=JSON)
    assert reply.status_code == 422
    assert reply.json()["detail"].startswith(f"{field}: ")


async def test_the_dashboard_takes_no_hostile_queries(tmp_path: Path) -> None:
    async with client("dashboard", tmp_path) as web:
        for query in (
            "/v1/metrics?since=NaN",
            "/v1/metrics?since=1e999",
            f"/v1/metrics?since={'9' * 5000}",
            "/v1/metrics?run=%ff%fe",
            "/v1/metrics?run=..%2f..%2fetc",
            "/v1/images/..%2f..%2fconfig.toml",
            "/v1/steps/-1/groups",
            "/v1/steps/%00/groups",
        ):
            assert (await web.get(query)).status_code in (404, 422), query


def test_strict_json_is_accepted_whatever_it_says() -> None:
    rows = ('{"a": {"a": 1}, "b": [{"a": 1}, {"a": 1}]}', '"NaN"', '{"NaN": "Infinity"}', "1e999", "[]", "null", "{}")
    for text in rows:
        assert json_mistake(text.encode()) == ""
    assert json_mistake(b"no json") == ""
    assert json_mistake(b'{"a": 1, "a": 1}') == "body: the key 'a' is there twice in one object; send it once"
