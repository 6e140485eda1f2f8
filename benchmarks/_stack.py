"""Redis, rollout (vLLM), verifier and teacher as the launcher starts them, with the trainer in this process.

So runs of several methods take turns on one set of engines. A trainer here is the trainer of production: its loop, its
learner, its publisher, with as many threads as the launcher gives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import torch

from cepo import runfile
from cepo.bus import RedisBus
from cepo.deployment import SPECS
from cepo.local import Stack, running
from cepo.pb.cepo.v1 import services_pb2_grpc
from cepo.runconfig import RunConfig
from cepo.rundir import RunDir
from cepo.settings import Settings
from services.trainer.__main__ import assemble
from services.trainer.loop import Run, train

RUNS = Path(__file__).parents[1] / "deploy" / "runs"
ENGINES = ("rollout", "verifier", "teacher")
READY_SECONDS = 300.0
Row = dict[str, Any]


@dataclass(frozen=True)
class Services:
    """Engines that are up."""

    settings: Settings
    """What a trainer needs to find them, and to be found."""
    folder: Path
    """Of runs, which go when the services do."""
    sessions: Mapping[str, int]
    """Every process of a service belongs to one."""

    def cpu_seconds(self) -> dict[str, float]:
        """What each service has used so far, with the processes it started, and this process as the trainer."""
        names, used = {session: name for name, session in self.sessions.items()}, dict.fromkeys(self.sessions, 0.0)
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = file.read_text().rpartition(")")[2].split()
                if name := names.get(int(fields[3])):
                    used[name] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return used | {"trainer": time.process_time()}


def tiny(method: str, *overrides: str) -> RunConfig:
    """The tiny model's run with a method, as fast as runs are by default, and quiet between steps.

    Its file asks for a deterministic one, in which the teacher scores a group at a time.
    """
    quiet = ('data.eval=""', "checkpoint.every=1000", "telemetry.rollouts_per_step=0")
    return runfile.load(RUNS / f"tiny_{method}.toml", ["loop.deterministic=false", *quiet, *overrides])


@contextlib.contextmanager
def services(config: RunConfig) -> Iterator[Services]:
    """Starts the engines for a run file's sizes and waits until they are ready."""
    folder = Path(tempfile.mkdtemp(prefix="cepo-bench-"))
    stack = Stack(config, RunDir(folder / "services"), services=ENGINES)
    stack.run.logs.mkdir(parents=True)
    try:
        with running(stack):
            deadline = time.monotonic() + READY_SECONDS
            while not all(_ready(address) for address in stack.http.values()):
                stack.check()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the services are not ready after {READY_SECONDS:.0f} s")
                time.sleep(0.5)
            host, _, port = stack.grpc["trainer"].rpartition(":")
            found = SPECS["trainer"].settings(config, Settings.from_environment())
            here = {"redis_url": stack.redis_url, "host": host, "grpc_port": int(port)}
            sessions = {name: child.process.pid for name, child in stack.children.items() if child.process}
            yield Services(found.model_copy(update=here), folder, sessions)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def trainer(engines: Services, config: RunConfig, name: str) -> AsyncIterator[Run]:
    """A run's trainer, which serves its adapters to the engines."""
    folder = RunDir(engines.folder / name)
    folder.create(config, resume=False, excluded={})
    bus = await RedisBus.connect(engines.settings)
    run = assemble(folder, bus, engines.settings)

    class Servicer(services_pb2_grpc.TrainerServiceServicer):
        FetchPolicy = staticmethod(run.publisher.stream)

    server = grpc.aio.server()
    services_pb2_grpc.add_TrainerServiceServicer_to_server(Servicer(), server)
    server.add_insecure_port(f"{engines.settings.host}:{engines.settings.grpc_port}")
    await server.start()
    try:
        yield run
    finally:
        await server.stop(0)
        await bus.close()
        torch.use_deterministic_algorithms(False)


def trained(engines: Services, config: RunConfig, name: str) -> list[Row]:
    """Runs a method to its last step; the metrics of every step but the first, which warms up.

    `cpu/SERVICE` is the mean over all of its steps.
    """

    async def whole() -> list[Row]:
        async with trainer(engines, config, name) as run:
            before = engines.cpu_seconds()
            await train(run, asyncio.Event())
            cpu = {f"cpu/{key}": (now - before[key]) / config.loop.steps for key, now in engines.cpu_seconds().items()}
            return [row | cpu for row in run.folder.rows()[1:]]

    rows = asyncio.run(whole())
    if any(row["groups/failed"] for row in rows):
        raise SystemExit(f"groups of {name} failed")
    return rows


def medians(rows: Sequence[Row], keys: Mapping[str, str]) -> dict[str, float]:
    """Medians over steps, by the names that `keys` gives to metrics."""
    return {name: round(statistics.median(row.get(key, 0.0) for row in rows), 4) for name, key in keys.items()}


def _ready(address: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{address}/readyz").status_code == 200
    return False
