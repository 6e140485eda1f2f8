"""`cepo serve SERVICE RUN.toml`: becomes one service of a run. Containers start this command.

With torchrun's variable PET_NNODES set, the trainer spans several machines and the command becomes
`torchrun -m services.trainer`. Machine 0 checks the run first, so that invalid input still exits with status 2.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cepo.cli.arguments import Overrides, RunFile
from cepo.cli.preflight.checks import run_checks
from cepo.cli.preflight.machine_checks import kv_cache_bytes
from cepo.cli.preflight.preflight import Preflight
from cepo.data.stored import begin, digests
from cepo.errors import UserError
from cepo.net.environment import child_environment
from cepo.net.settings import Settings
from cepo.net.torchrun import Place, node_rank
from cepo.prompts.images import ImageStore
from cepo.run import file as runfile
from cepo.run.deployment import SPECS, environment, processes
from cepo.run.folder import RunDir
from cepo.service.bus import RedisBus

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

REDIS_SECONDS = 300.0
TORCHRUN = ["-m", "torch.distributed.run"]
Service = Literal["rollout", "teacher", "trainer"]
"""The services that follow a run file."""


def serve(
    service: Annotated[Service, typer.Argument(metavar="SERVICE", help="The service to run.")],
    file: RunFile,
    *,
    set: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="The folder of the run; only the trainer needs it.")
    ] = None,
) -> None:
    """Replaces this process with the service.

    Raises:
        UserError: a check blocks the run, or the service cannot run like this.
        Unreachable: Redis does not answer.
    """
    config, surroundings = runfile.load(file, set or ()), Settings.from_environment(service)
    arguments, launcher, spec = [], [], SPECS[service]
    if spec not in processes(config):
        raise UserError('engine.teacher = "colocated": the trainer does the teacher\'s work; start no teacher')
    if service == "trainer":
        if run_dir is None:
            raise UserError("cepo serve trainer needs --run-dir, a folder that outlives the container")
        if Place.from_environment() is not None:
            raise UserError(
                "RANK is set: give torchrun `-m services.trainer RUN_DIR`; or set PET_NNODES, and cepo serve trainer "
                "starts torchrun itself"
            )
        asyncio.run(reached(surroundings))
        folder, node = RunDir(run_dir), node_rank()
        if folder.config.is_file():
            config = runfile.load(folder.config)
        if not (node or digests(folder)):  # the other machines receive the run from machine 0
            prepare(config, folder, surroundings.redis_url)
        arguments, launcher = [str(folder.path)], [] if node is None else TORCHRUN
    elif service == "rollout" and not surroundings.kv_cache_memory_bytes:
        surroundings = surroundings.model_copy(update={"kv_cache_memory_bytes": kv_cache_bytes(config)})
    variables = child_environment(environment(spec.settings(config, surroundings), service))
    os.execve(sys.executable, [sys.executable, *launcher, *spec.command(*arguments)], variables)


async def reached(settings: Settings) -> None:
    """Waits for Redis: containers start together, and a Kubernetes Job must not fail because Redis is not up yet.

    Raises:
        Unreachable: Redis does not answer for five minutes.
    """
    bus = await RedisBus.connect(settings, REDIS_SECONDS)
    await bus.close()


def prepare(config: RunConfig, folder: RunDir, redis_url: str) -> None:
    """Checks a run as `cepo train` does, then creates its folder; adds the problems to a folder of an older version.

    Raises:
        UserError: a check blocks the run.
    """
    store, resume = ImageStore(folder.images), folder.config.is_file()
    preflight = Preflight(config, folder.path, redis_url, starts=("trainer",), store=store, resume=resume)
    with store.transaction():
        for finding in run_checks(preflight):
            print(f"{finding.check}: {finding.text}", flush=True)
        begin(folder, config, preflight.sets, resume=resume, excluded=preflight.excluded)
