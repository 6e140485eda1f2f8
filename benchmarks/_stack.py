"""Redis, rollout (vLLM), verifier and teacher as the launcher starts them, with the trainer in this process.

So runs of several methods take turns on one set of engines. A trainer here is the trainer of production: its loop, its
learner, its publisher, with as many threads as the launcher gives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
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

from benchmarks._processes import SYSTEM_TICKS, USER_TICKS, members, memory
from cepo.data.problems import load_sets
from cepo.data.stored import begin
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2_grpc
from cepo.prompts.images import ImageStore
from cepo.prompts.renderer import Renderer
from cepo.run import file as runfile
from cepo.run.config import RunConfig
from cepo.run.deployment import SPECS
from cepo.run.folder import RunDir
from cepo.run.local import Stack, running
from cepo.service.bus import RedisBus
from services.trainer.__main__ import TrainerServicer, assemble
from services.trainer.loop import Run, train

RUNS = Path(__file__).parents[1] / "deploy" / "runs"
ENGINES = ("rollout", "verifier", "teacher")
PROCESSES = (*ENGINES, "trainer")
READY_SECONDS = 300.0
Row = dict[str, Any]
TIMES = {
    "step_seconds": "time/step_seconds",
    "rollout_seconds": "time/rollout_seconds",
    "train_seconds": "time/train_seconds",
    "publish_seconds": "time/publish_seconds",
    "reload_seconds": "time/publish_to_first_token_seconds",
    "response_tokens": "length/mean",
    **{f"mebibytes_{name}": f"memory/{name}" for name in PROCESSES},
}
"""What every comparison of whole steps tells, by the metrics that say it."""


@dataclass(frozen=True)
class Services:
    """Engines that are up."""

    settings: Settings
    """What a trainer needs to find them, and to be found."""
    folder: Path
    """Of runs, which go when the services do."""
    sessions: Mapping[str, int]
    """Every process of a service belongs to one."""
    http: Mapping[str, str]
    """Where each engine serves REST."""

    def cpu_seconds(self) -> dict[str, float]:
        """What each service has used so far, with the processes it started, and this process as the trainer."""
        used, second = dict.fromkeys(self.sessions, 0.0), os.sysconf("SC_CLK_TCK")
        for name, _, fields in members(self.sessions):
            used[name] += (int(fields[USER_TICKS]) + int(fields[SYSTEM_TICKS])) / second
        return used | {"trainer": time.process_time()}

    def mebibytes(self) -> dict[str, float]:
        """What each of them holds now (`_processes.memory`)."""
        processes = [("trainer", os.getpid()), *((name, pid) for name, pid, _ in members(self.sessions))]
        return {name: size / 2**20 for name, size in memory(processes).items()}


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
            yield Services(found.model_copy(update=here), folder, sessions, stack.http)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def trainer(engines: Services, config: RunConfig, path: Path) -> AsyncIterator[Run]:
    """A run's trainer, which serves its adapters to the engines; its folder is made at `path`."""
    folder = RunDir(path)
    begin(folder, config, load_sets(config, Renderer(config.model.path), store=ImageStore(folder.images)), resume=False)
    bus = await RedisBus.connect(engines.settings)
    run = assemble(folder, bus, engines.settings)
    server = grpc.aio.server()
    services_pb2_grpc.add_TrainerServiceServicer_to_server(TrainerServicer(run, asyncio.Event()), server)
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

    `cpu/SERVICE` is the mean over all of its steps, `memory/SERVICE` MiB after the last.
    """

    async def whole() -> list[Row]:
        async with trainer(engines, config, engines.folder / name) as run:
            before = engines.cpu_seconds()
            await train(run, asyncio.Event())
            cpu = {f"cpu/{key}": (now - before[key]) / config.loop.steps for key, now in engines.cpu_seconds().items()}
            held = {f"memory/{key}": size for key, size in engines.mebibytes().items()}
            return [row | cpu | held for row in run.folder.rows()[1:]]

    rows = asyncio.run(whole())
    gc.collect()  # the run, whose memory of the GPU others are to have
    torch.cuda.empty_cache()
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
