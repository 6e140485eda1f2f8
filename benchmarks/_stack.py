"""Redis, rollout (vLLM), verifier and teacher as the launcher starts them, with the trainer in this process.

Runs of several methods can therefore use one set of engines, one after another. The trainer has the loop, the learner,
the publisher and the number of threads of production.
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
"""The figures of every comparison of whole steps, and the metrics they are medians of."""


@dataclass(frozen=True)
class Services:
    """The running engines."""

    settings: Settings
    """The settings of a trainer: where the engines are, and where it listens itself."""
    folder: Path
    """The parent of the run folders; it is deleted when the services end."""
    sessions: Mapping[str, int]
    """The session id of each service, to which all of its processes belong."""
    http: Mapping[str, str]
    """The REST address of each engine."""

    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds that each service has used so far, including its child processes; this process is the trainer."""
        used, second = dict.fromkeys(self.sessions, 0.0), os.sysconf("SC_CLK_TCK")
        for name, _, fields in members(self.sessions):
            used[name] += (int(fields[USER_TICKS]) + int(fields[SYSTEM_TICKS])) / second
        return used | {"trainer": time.process_time()}

    def mebibytes(self) -> dict[str, float]:
        """The memory of each service and of this process, in MiB (`_processes.memory`)."""
        processes = [("trainer", os.getpid()), *((name, pid) for name, pid, _ in members(self.sessions))]
        return {name: size / 2**20 for name, size in memory(processes).items()}


def tiny(method: str, *overrides: str) -> RunConfig:
    """The tiny model's run file for a method, without evaluations, checkpoints and rollout files.

    It is not deterministic, unlike the file itself: a deterministic teacher scores one group at a time.
    """
    steps_only = ('data.eval=""', "checkpoint.every=1000", "telemetry.rollouts_per_step=0")
    return runfile.load(RUNS / f"tiny_{method}.toml", ["loop.deterministic=false", *steps_only, *overrides])


@contextlib.contextmanager
def services(config: RunConfig) -> Iterator[Services]:
    """Starts engines with the sizes of a run file and waits until they are ready; stops them afterwards."""
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
            settings = SPECS["trainer"].settings(config, Settings.from_environment())
            addresses = {"redis_url": stack.redis_url, "host": host, "grpc_port": int(port)}
            sessions = {name: child.process.pid for name, child in stack.children.items() if child.process}
            yield Services(settings.model_copy(update=addresses), folder, sessions, stack.http)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def trainer(engines: Services, config: RunConfig, path: Path) -> AsyncIterator[Run]:
    """The trainer of a new run folder at `path`, which serves its adapters to the engines."""
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
    """Trains a run to its last step.

    Returns:
        The metrics of every step but the first, which warms up. Each row also has `cpu/SERVICE`, the mean CPU seconds
        of a step, and `memory/SERVICE`, the MiB after the last step.
    """

    async def whole() -> list[Row]:
        async with trainer(engines, config, engines.folder / name) as run:
            before = engines.cpu_seconds()
            await train(run, asyncio.Event())
            cpu = {f"cpu/{key}": (now - before[key]) / config.loop.steps for key, now in engines.cpu_seconds().items()}
            held = {f"memory/{key}": size for key, size in engines.mebibytes().items()}
            return [row | cpu | held for row in run.folder.rows()[1:]]

    rows = asyncio.run(whole())
    gc.collect()  # frees the run's GPU memory for the next
    torch.cuda.empty_cache()
    if any(row["groups/failed"] for row in rows):
        raise SystemExit(f"groups of {name} failed")
    return rows


def medians(rows: Sequence[Row], keys: Mapping[str, str]) -> dict[str, float]:
    """Medians over steps.

    Args:
        keys: the metric of each figure. Example: {"train_seconds": "time/train_seconds"}.
    """
    return {name: round(statistics.median(row.get(key, 0.0) for row in rows), 4) for name, key in keys.items()}


def _ready(address: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{address}/readyz").status_code == 200
    return False
