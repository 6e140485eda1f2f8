"""`cepo serve SERVICE RUN.toml`: becomes one service of a run; what a container starts.

A trainer over several machines, which torchrun's variable PET_NNODES tells of, becomes `torchrun -m services.trainer`:
what the run is checked for comes first, on machine 0, so that a mistake of the user's still ends with exit 2.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from cepo.cli.arguments import add_run_file
from cepo.cli.preflight.checks import run_checks
from cepo.cli.preflight.preflight import Preflight
from cepo.data.stored import begin, digests
from cepo.errors import UserError
from cepo.net.settings import Place, Settings, child_environment, node_rank
from cepo.prompts.images import ImageStore
from cepo.run import file as runfile
from cepo.run.config import RunConfig
from cepo.run.deployment import SPECS, environment, processes
from cepo.run.folder import RunDir
from cepo.service.bus import RedisBus

REDIS_SECONDS = 300.0
TORCHRUN = ["-m", "torch.distributed.run"]


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("serve", help="run one service, for containers; the trainer goes on where it was")
    parser.add_argument("service", choices=[name for name, spec in SPECS.items() if spec.follows_run])
    add_run_file(parser)
    parser.add_argument("--run-dir", type=Path, help="folder of the run; the trainer's alone")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Replaces this process by the service."""
    config, surroundings = runfile.load(options.file, options.set), Settings.from_environment(options.service)
    arguments, launcher, spec = [], [], SPECS[options.service]
    if spec not in processes(config):
        raise UserError('engine.teacher = "colocated": the trainer does the teacher\'s work; start no teacher')
    if options.service == "trainer":
        if options.run_dir is None:
            raise UserError("cepo serve trainer needs --run-dir, a folder that outlives the container")
        if Place.from_environment() is not None:
            raise UserError(
                "RANK is set: give torchrun `-m services.trainer RUN_DIR`; or set PET_NNODES, and cepo serve trainer "
                "starts torchrun itself"
            )
        asyncio.run(reached(surroundings))
        folder, node = RunDir(options.run_dir), node_rank()
        if folder.config.is_file():
            config = runfile.load(folder.config)
        if not (node or digests(folder)):  # the other machines learn the run from the first
            prepare(config, folder, surroundings.redis_url)
        arguments, launcher = [str(folder.path)], [] if node is None else TORCHRUN
    variables = child_environment(environment(spec.settings(config, surroundings)))
    os.execve(sys.executable, [sys.executable, *launcher, *spec.command(*arguments)], variables)


async def reached(settings: Settings) -> None:
    """Waits for Redis: where containers run everything starts at once, and a Job is not to fail for good over that.

    Raises:
        Unreachable: it does not answer for five minutes.
    """
    bus = await RedisBus.connect(settings, REDIS_SECONDS)
    await bus.close()


def prepare(config: RunConfig, folder: RunDir, redis_url: str) -> None:
    """Checks a run as `cepo train` does, then makes its folder; a folder of an older version gets its problems.

    Raises:
        UserError: what blocks the run.
    """
    store, resume = ImageStore(folder.images), folder.config.is_file()
    preflight = Preflight(config, folder.path, redis_url, starts=("trainer",), store=store, resume=resume)
    with store.transaction():
        for finding in run_checks(preflight):
            print(f"{finding.check}: {finding.text}", flush=True)
        begin(folder, config, preflight.sets, resume=resume, excluded=preflight.excluded)
