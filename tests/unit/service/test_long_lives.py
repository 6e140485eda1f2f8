"""Services that run for weeks do not grow: adapters, calls that fail, clients that leave, and streams.

Each test has a short form that runs always and the full count for `make nightly`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from safetensors.numpy import load, save

from cepo.dashboard import rest as dashboard
from cepo.dashboard.folder import Watched
from cepo.messages.groups import BASE_POLICY, PolicyRef
from cepo.messages.wire import to_proto
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2_grpc
from cepo.service import adapters
from cepo.service.adapters import FILES
from cepo.service.chassis import Service, run
from tests.helpers.factories import make_group
from tests.helpers.growth import connections, resident_mib, settled, slope
from tests.helpers.processes import unused_port
from tests.helpers.runs import make_metrics, make_run, make_status
from tests.helpers.scorers import make_scorer, random_adapter
from tests.unit.security.support import served

LOADS = [24, pytest.param(500, marks=pytest.mark.nightly)]
CALLS = [120, pytest.param(5000, marks=pytest.mark.nightly)]
REQUESTS = [120, pytest.param(10_000, marks=pytest.mark.nightly)]
POINTS = 12
"""Measurements of the memory in a test; the first ones are left out, because caches fill then."""
HOURS = [0.05, pytest.param(8.0, marks=pytest.mark.nightly)]


@pytest.fixture(autouse=True, scope="module")
def _few_objects() -> Iterator[None]:
    """Leaves the objects of imported libraries out of the collections that come before each measurement."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def _versions(folder: Path, count: int) -> dict[PolicyRef, dict[str, bytes]]:
    """Adapters that differ in one scaled tensor, which is quicker than making each from its own seed."""
    _, files = random_adapter(folder, 1)
    tensors = load(files[FILES[1]])
    name = min(tensors)
    versions = {}
    for version in range(1, count + 1):
        scaled = {**tensors, name: tensors[name] * (1 + version / 1000)}
        made = {FILES[0]: files[FILES[0]], FILES[1]: save(scaled, {"format": "pt"})}
        versions[PolicyRef(version=version, sha256=adapters.digest(made))] = made
    return versions


@pytest.mark.parametrize("count", LOADS)
async def test_a_teacher_that_loads_adapter_after_adapter_does_not_grow(tmp_path: Path, count: int) -> None:
    versions = _versions(tmp_path / "made", count)
    scorer = make_scorer(tmp_path / "cache", versions)
    await scorer.load(BASE_POLICY)
    used, every = [], count // POINTS
    for policy in versions:
        assert (await scorer.load(policy)).bound_modules > 0
        if policy.version % every == 0:
            used.append(resident_mib())
    scorer.close()
    assert slope(used[POINTS // 4 :]) / every < 0.2
    assert len(list((tmp_path / "cache").iterdir())) == 4


@pytest.mark.parametrize("count", CALLS)
async def test_calls_that_time_out_or_are_dropped_leave_nothing(count: int) -> None:
    """As in grpc/grpc #43360 and #43462."""
    group = to_proto(make_group())
    chance = random.Random(0)
    async with served() as service:
        address = f"127.0.0.1:{service.grpc_port}"
        used, tasks, every = [], len(asyncio.all_tasks()), count // POINTS
        for _ in range(POINTS):
            async with grpc.aio.insecure_channel(address) as connection:
                stub = services_pb2_grpc.VerifierServiceStub(connection)
                calls = [stub.Verify(group, timeout=chance.choice((1e-6, 1e-3, 60.0))) for _ in range(every)]
                await asyncio.sleep(chance.choice((0.0, 0.002)))
                for call in calls[::2]:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            used.append(resident_mib())
        assert await settled(tasks + 2)
        async with grpc.aio.insecure_channel(address) as connection:
            reply = await services_pb2_grpc.VerifierServiceStub(connection).Verify(group, timeout=60.0)
            assert len(reply.verdicts) == len(make_group().completions)
    assert slope(used[POINTS // 4 :]) / every < 0.01  # MiB a call


@pytest.mark.parametrize("count", REQUESTS)
async def test_clients_that_leave_early_leave_nothing(count: int) -> None:
    requests = (
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
        b"GET /healthz HT",
        b"",
    )
    async with served(requests_per_second=1e6) as service:
        used, tasks, open_before, every = [], len(asyncio.all_tasks()), connections(), count // POINTS
        for number in range(count):
            _, writer = await asyncio.open_connection("127.0.0.1", service.http_port)
            writer.write(requests[number % len(requests)])
            await asyncio.sleep(0)
            writer.transport.abort()
            if number % 20 == 0:
                await asyncio.sleep(0.005)
            if number % every == 0:
                used.append(resident_mib())
        assert await settled(tasks)
        assert connections() <= open_before
    assert slope(used[POINTS // 3 :]) / every < 0.05  # MiB a request


@pytest.mark.parametrize("hours", HOURS)
async def test_streams_of_the_dashboard_do_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    """A stream is polled as often as in these hours, while a step of the run ends each minute."""
    folder = make_run(tmp_path / "run", 1)
    folder.write_status(make_status(folder, "train", 1))
    watched, polls = Watched(folder), round(hours * 3600 / dashboard.POLL_SECONDS)
    monkeypatch.setattr(dashboard, "POLL_SECONDS", 0.0)
    stream = dashboard._events(watched, 0)
    used, rows = [], 0
    per_step = max(1, polls // round(hours * 60))
    for at in range(0, polls, per_step):
        folder.append(make_metrics(at // per_step + 1))
        folder.write_status(make_status(folder, "train", at // per_step + 1))
        while "event: row" not in await anext(stream):
            pass
        rows += 1
        for _ in range(per_step):
            watched.steps()
            watched.status()
        if at % (10 * per_step) == 0:
            used.append(resident_mib())
    await stream.aclose()
    bytes_per_row = len(json.dumps(make_metrics(1)))
    assert rows == len(watched.steps()) - 1
    assert used[-1] - used[len(used) // 4] < 2 + 20 * rows * bytes_per_row / 2**20


@pytest.mark.parametrize("count", [12, pytest.param(500, marks=pytest.mark.nightly)])
async def test_streams_whose_clients_leave_are_closed(tmp_path: Path, count: int) -> None:
    folder = make_run(tmp_path / "run", 1)
    folder.write_status(make_status(folder, "train", 1))
    done = asyncio.Event()

    async def work(stop: asyncio.Event) -> None:
        await done.wait()

    app = dashboard.application([Watched(folder)])
    settings = Settings(grpc_port=unused_port(), http_port=unused_port())
    running = asyncio.create_task(run(Service("toy", "toy", lambda server: None, work, app), settings))
    while True:
        with contextlib.suppress(OSError):
            (await asyncio.open_connection("127.0.0.1", settings.http_port))[1].transport.abort()
            break
        await asyncio.sleep(0.02)
    tasks, used, every = len(asyncio.all_tasks()), [], count // POINTS
    for number in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", settings.http_port)
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"event: row" in await reader.readuntil(b"\n\n")
        writer.transport.abort()
        if number % every == 0:
            used.append(resident_mib())
    assert await settled(tasks)
    done.set()
    await running
    assert slope(used[POINTS // 4 :]) / every < 0.2
