"""A web page of another site cannot use a service on loopback through the browser of its user."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from cepo.net.limits import is_loopback
from cepo.net.rest import guard
from cepo.net.settings import Settings
from tests.unit.security.support import served

PATHS = ("/healthz", "/metrics", "/openapi.json", "/absent")


async def statuses(service: Settings, headers: dict[str, str]) -> set[int]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}", headers=headers) as web:
        return {(await web.get(path)).status_code for path in PATHS} | {(await web.post("/echo")).status_code}


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8051", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "", "["],
)
async def test_a_name_that_was_rebound_to_loopback_is_refused(host: str) -> None:
    async with served() as service:
        assert await statuses(service, {"Host": host}) == {403}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8051", "127.8.8.8", "[::1]:8051"])
async def test_names_of_loopback_are_accepted(host: str) -> None:
    async with served() as service:
        assert await statuses(service, {"Host": host}) == {200, 404}


@pytest.mark.parametrize("origin", ["http://evil.example", "https://127.0.0.1.evil.example", "null", "file://", "x"])
async def test_a_page_of_another_site_is_refused(origin: str) -> None:
    async with served() as service:
        assert await statuses(service, {"Origin": origin}) == {403}


async def test_the_own_page_may_call_and_the_refusal_names_the_fix() -> None:
    async with served() as service, httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as web:
        for origin in (f"http://127.0.0.1:{service.http_port}", "http://localhost:3000"):
            assert (await web.post("/echo", headers={"Origin": origin})).json() == 0
        reply = await web.get("/healthz", headers={"Host": "evil.example"})
        assert reply.json()["detail"].startswith("Host: 'evil.example' is not this machine, and the service listens on")
        assert "let the proxy in front send Host: localhost and no Origin" in reply.json()["detail"]


async def test_no_reply_allows_another_site_to_read_it() -> None:
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    async with served() as service, httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as web:
        replies = [await web.options("/echo", headers=asked), await web.post("/echo", headers=asked)]
    assert [reply.status_code for reply in replies] == [405, 200]
    assert not [name for reply in replies for name in reply.headers if name.startswith("access-control")]


def test_beyond_loopback_names_are_free_because_a_token_is_needed() -> None:
    for host, checked in (("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)):
        app = FastAPI()
        guard(app, Settings(host=host, token="secret"))
        assert ("LoopbackOnly" in str(app.user_middleware)) is checked


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.0.1", "::1", "localhost", "Localhost"])
def test_loopback_is_known_by_name_and_address(host: str) -> None:
    assert is_loopback(host)
    assert not is_loopback(f"{host}.example")
    assert not is_loopback("")
