"""The REST API of the dashboard on complete, truncated and resumed run folders."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cepo.cli import main
from cepo.dashboard.folder import Watched
from cepo.dashboard.rest import application
from cepo.errors import UserError
from cepo.net.rest import guard
from cepo.net.settings import Settings
from cepo.prompts.images import ImageStore
from cepo.run.folder import RunDir
from cepo.run.lines import Row
from tests.helpers.runs import make_failure, make_metrics, make_run, make_status, write_groups
from tests.helpers.vision import BLANK


def web(*runs: RunDir, token: str = "") -> httpx.AsyncClient:
    """A client of the dashboard of these runs, without a network."""
    app = application([Watched(run) for run in runs])
    guard(app, Settings(token=token))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://run")


async def get(client: httpx.AsyncClient, path: str) -> Any:
    reply = await client.get(path)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_rows_come_in_pages_and_a_torn_last_line_when_it_is_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 5)
    line = json.dumps(make_metrics(5))
    with run.metrics.open("a") as file:
        file.write(line[:20])
    async with web(run) as client:
        found = await get(client, "/v1/metrics?since=1&limit=3")
        assert ([row["step"] for row in found["rows"]], found["next"]) == ([1, 2, 3], 4)
        found = await get(client, f"/v1/metrics?since={found['next']}")
        assert ([row["step"] for row in found["rows"]], found["next"]) == ([4], None)
        with run.metrics.open("a") as file:
            file.write(line[20:] + "\n")
        assert [row["step"] for row in (await get(client, "/v1/metrics"))["rows"]] == [0, 1, 2, 3, 4, 5]


async def test_the_images_of_its_problems_are_served_by_content_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1)
    store = ImageStore(run.images)
    store.put(BLANK.data)
    async with web(run, token="secret") as client:
        path = f"/v1/images/{BLANK.ref.sha256}"
        assert (await client.get(path)).status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        reply = await client.get(path)
        assert (reply.headers["content-type"], reply.content) == ("image/png", BLANK.data)
        assert (await client.get(f"/v1/images/{'0' * 64}")).status_code == 404
        for name in ("config.toml", "..%2fconfig.toml", BLANK.ref.sha256.upper()):
            assert (await client.get(f"/v1/images/{name}")).status_code in (404, 422)


async def test_what_is_no_row_and_no_number_of_json_does_no_harm(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1)
    with run.metrics.open("a") as file:
        file.write(
            '{"step": 1, "loss/policy": NaN, "grad_norm": Infinity}\n[1]\n{"no": "step"}\nnot json\n\n{"step": 2}\n'
        )
    async with web(run) as client:
        rows = (await get(client, "/v1/metrics"))["rows"]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[1] == {"step": 1, "loss/policy": None, "grad_norm": None}


@pytest.mark.parametrize("config", [b'model = "mine"\nname = 3\n', b"[model]\npath = 3\n", b"\xff\xfe", b"no TOML"])
async def test_a_folder_that_something_else_wrote_does_no_harm(tmp_path: Path, config: bytes) -> None:
    run = make_run(tmp_path / "run", 1)
    run.config.write_bytes(config)
    run.failures.write_text('{"step": "first"}\n{}\n' + json.dumps(make_failure(0)) + "\n")
    run.status.write_text('{"phase": 3, "time": "now"}')
    async with web(run) as client:
        (found,) = await get(client, "/v1/runs")
        assert (found["name"], found["algorithm"], found["steps"]) == ("run", {}, None)
        assert (await get(client, "/v1/status"))["running"] is False
        assert (await get(client, "/v1/failures"))["total"] == 1


async def test_a_resumed_run_forgets_what_it_will_do_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 6)
    for step in range(6):
        write_groups(run, step)
    run.append_failures([make_failure(step) for step in (1, 4)])
    async with web(run) as client:
        assert len((await get(client, "/v1/metrics"))["rows"]) == 6
        run.truncate(3)
        run.append(make_metrics(3, **{"reward/mean": 0.125}))
        rows = (await get(client, "/v1/metrics"))["rows"]
        assert [row["step"] for row in rows] == [0, 1, 2, 3]
        assert rows[3]["reward/mean"] == 0.125
        assert [row["step"] for row in (await get(client, "/v1/failures"))["failures"]] == [1]
        assert (await get(client, "/v1/steps/3/groups"))["groups"] == []
        assert (await get(client, "/v1/steps/2/groups"))["total"] == 2


async def test_groups_of_a_step_come_with_their_tokens(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 2)
    write_groups(run, 1, count=3)
    async with web(run) as client:
        found = await get(client, "/v1/steps/1/groups?offset=1&limit=1")
        assert (found["step"], found["total"]) == (1, 3)
        assert [group["group"] for group in found["groups"]] == ["run/1/1"]
        sample = found["groups"][0]["samples"][0]
        assert "".join(sample["tokens"]) == sample["text"]
        assert await get(client, "/v1/steps/0/groups") == {"step": 0, "total": 0, "groups": []}
        with run.rollouts_of(1).open("a") as file:
            file.write('{"group": "cut')
        assert (await get(client, "/v1/steps/1/groups"))["total"] == 3


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/v1/steps/2/groups", 404, "the run has no step 2"),
        (f"/v1/steps/{2**53}/groups", 404, "the run has no step"),
        (f"/v1/steps/{10**30}/groups", 422, "step: "),
        ("/v1/steps/-1/groups", 422, "step: "),
        ("/v1/steps/..%2F..%2Fetc/groups", 404, "Not Found"),
        ("/v1/steps/config/groups", 422, "step: "),
        ("/v1/metrics?limit=0", 422, "limit: "),
        ("/v1/metrics?limit=1001", 422, "limit: "),
        ("/v1/metrics?run=../run", 404, "no run '../run' is shown here; give one of: run"),
        ("/v1/failures?limit=100000", 422, "limit: "),
        ("/v1/events?since=x", 422, "since: "),
    ],
)
async def test_what_cannot_be_answered_is_refused_in_one_line(
    tmp_path: Path, path: str, status: int, says: str
) -> None:
    async with web(make_run(tmp_path / "run", 2)) as client:
        reply = await client.get(path)
    assert reply.status_code == status
    assert reply.json()["detail"].startswith(says)


async def test_failures_come_newest_first_in_pages(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1)
    async with web(run) as client:
        assert await get(client, "/v1/failures") == {"total": 0, "failures": []}
        run.append_failures([make_failure(step, error=f"reason {step}") for step in range(5)])
        found = await get(client, "/v1/failures?since=1&offset=1&limit=2")
        assert (found["total"], [row["error"] for row in found["failures"]]) == (4, ["reason 3", "reason 2"])


async def test_the_page_is_open_and_its_data_need_the_token(tmp_path: Path) -> None:
    run = make_run(tmp_path / "secret-run", 1)
    async with web(run, token="t") as client:
        page = await client.get("/")
        assert page.status_code == 200
        assert "secret-run" not in page.text
        text = page.text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text.replace("/*! https://github.com/leeoniya/uPlot (v1.6.32) */", "")
        for path in ("status", "runs", "metrics", "steps/0/groups", "failures", "events"):
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                assert (await client.get(f"/v1/{path}", headers=headers)).status_code == 401
        reply = await client.get("/v1/metrics", headers={"Authorization": "Bearer t"})
        assert len(reply.json()["rows"]) == 1


async def test_the_status_says_whether_a_trainer_still_works(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 3)
    async with web(run) as client:
        said = await get(client, "/v1/status")
        assert (said["phase"], said["step"], said["running"]) == ("unknown", 2, False)
        run.write_status(make_status(run, "train", 3))
        said = await get(client, "/v1/status")
        assert (said["phase"], said["step"], said["running"], said["queues"]["rollout"]) == ("train", 3, True, 3)
        run.write_status(make_status(run, "train", 3, time=0.0))
        assert (await get(client, "/v1/status"))["running"] is False
        run.write_status(make_status(run, "done", 3))
        assert (await get(client, "/v1/status"))["running"] is False


async def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / folder / "run", steps) for folder, steps in (("a", 1), ("b", 2))]
    async with web(*runs) as client:
        found = await get(client, "/v1/runs")
        assert [run["name"] for run in found] == ["run", "run (2)"]
        assert found[0]["algorithm"]["name"] == "cepo"
        assert len((await get(client, "/v1/metrics?run=run (2)"))["rows"]) == 2


async def events_of(run: Watched, since: int = 0) -> AsyncIterator[tuple[str, Any]]:
    """The events of the route, parsed as by a client."""
    app = application([run])
    route = next(route for route in app.routes if getattr(route, "path", "") == "/v1/events")
    response = await route.endpoint(since)  # type: ignore[attr-defined]
    async for text in response.body_iterator:
        for event in text.strip().split("\n\n"):
            name, data = event.split("\n")
            yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


async def test_events_tell_of_rows_phases_failures_and_of_going_back_and_end_with_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 3)
    run.write_status(make_status(run, "rollout", 3))
    events = events_of(Watched(run), since=1)

    async def until(wanted: str) -> list[tuple[str, Any]]:
        seen = []
        async with asyncio.timeout(100):
            async for name, data in events:
                seen.append((name, data))
                if name == wanted:
                    return seen
        raise AssertionError(seen)

    first = await until("status")
    assert [data["step"] for name, data in first if name == "row"] == [1, 2]
    assert first[-1][1]["phase"] == "rollout"
    assert ("failures", {"total": 0}) in first
    run.append(make_metrics(3))
    assert (await until("row"))[-1][1]["step"] == 3
    run.append_failures([make_failure(3)])
    assert (await until("failures"))[-1][1] == {"total": 1}
    run.truncate(2)
    assert (await until("restart"))[-1][1] == {}
    run.append(make_metrics(2))
    run.write_status(make_status(run, "done", 2))
    rest = [(name, data) async for name, data in events]
    assert [data["step"] for name, data in rest if name == "row"] == [2]
    assert rest[-1][1]["phase"] == "done"


class EndsMeanwhile(Watched):
    """A run whose trainer writes its last row and exits just after a client has read the rows."""

    def steps(self) -> list[Row]:
        found = super().steps()
        if found and len(found) < 4:
            self.run.append(make_metrics(len(found)))
            if len(found) == 3:
                self.run.write_status(make_status(self.run, "done", 3))
        return found


async def test_the_last_row_is_told_however_soon_the_run_ends_after_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 1)
    run.write_status(make_status(run, "rollout", 1))
    told = [(name, data) async for name, data in events_of(EndsMeanwhile(run))]
    assert [data["step"] for name, data in told if name == "row"] == [0, 1, 2, 3]
    assert told[-1][1]["phase"] == "done"


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="holds no run"):
        Watched(RunDir(tmp_path))
    assert main(["dashboard", str(tmp_path / "absent")]) == 2
    said = f"cepo: {tmp_path / 'absent'} holds no run; give a folder with config.toml and metrics.jsonl\n"
    assert capsys.readouterr().err == said
    assert main(["dashboard", str(tmp_path / "absent"), "--port", "99999"]) == 2
    assert capsys.readouterr().err == "cepo: --port 99999: give one from 0 to 65535\n"


def test_beyond_loopback_the_dashboard_asks_for_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CEPO_HOST", "0.0.0.0")
    monkeypatch.delenv("CEPO_TOKEN", raising=False)
    assert main(["dashboard", str(make_run(tmp_path / "run", 1).path)]) == 2
    assert "lets other machines call without a token" in capsys.readouterr().err
