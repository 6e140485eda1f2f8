"""`cepo train RUN.toml`: starts everything, trains, shows progress, says what was gained."""

from __future__ import annotations

import argparse
import signal
import time
from pathlib import Path
from typing import Any

from cepo.cli.arguments import add_redis, add_run_file
from cepo.cli.preflight.checks import run_checks
from cepo.cli.preflight.preflight import Preflight
from cepo.cli.progress import Progress
from cepo.data.stored import begin
from cepo.errors import UserError
from cepo.net.connections import web_client
from cepo.net.settings import Settings
from cepo.prompts.images import ImageStore
from cepo.run import file as runfile
from cepo.run.deployment import SPECS
from cepo.run.folder import RunDir
from cepo.run.local import Stack, running

POLL_SECONDS = 0.25


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("train", help="train from a run file")
    add_run_file(parser)
    parser.add_argument("--run-dir", type=Path, help="folder of the run (default: runs/NAME-TIME)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run folder")
    add_redis(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Trains; Ctrl-C drains and checkpoints."""
    config = runfile.load(options.file, options.set)
    folder = RunDir(_run_dir(options, config.name))
    folder.check(resume=options.resume)
    progress = Progress(config, folder)
    store = ImageStore(folder.images)
    preflight = Preflight(config, folder.path, options.redis, starts=tuple(SPECS), store=store, resume=options.resume)
    with store.transaction():
        notes = [finding.text for finding in run_checks(preflight) if finding.state == "note"]
        progress.checked(preflight.train, preflight.held_out, notes)
        begin(folder, config, preflight.sets, resume=options.resume, excluded=preflight.excluded)
    interrupts = 0

    def interrupt(number: int, frame: object) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            raise KeyboardInterrupt
        progress.draining()
        stack.drain()

    stack = Stack(config, folder, options.redis)
    previous = signal.signal(signal.SIGINT, interrupt), signal.signal(signal.SIGTERM, interrupt)
    try:
        with web_client(Settings.from_environment(), stack.http["trainer"]) as trainer, running(stack), progress:
            while not stack.check():
                progress.poll(trainer)
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        raise UserError(
            f"stopped at once; go on with: cepo train {options.file} --run-dir {folder.path} --resume"
        ) from None
    finally:
        signal.signal(signal.SIGINT, previous[0])
        signal.signal(signal.SIGTERM, previous[1])
    progress.summary(options.file)
    return 0


def _run_dir(options: argparse.Namespace, name: str) -> Path:
    if options.run_dir is not None:
        return Path(options.run_dir)
    if not options.resume:
        return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    earlier = sorted(Path("runs").glob(f"{name}-*"))
    if not earlier:
        raise UserError(f"no run of {name} under runs/ to resume; give its --run-dir")
    return earlier[-1]
