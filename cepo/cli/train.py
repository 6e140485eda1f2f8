"""`cepo train RUN.toml`: starts every process of a run, trains, shows progress and prints the gain."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from cepo.cli.arguments import Overrides, RedisUrl, RunFile
from cepo.cli.preflight.checks import run_checks
from cepo.cli.preflight.preflight import Preflight
from cepo.cli.progress import ProgressDisplay
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


def train(
    file: RunFile,
    *,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="The folder of the run; default: runs/NAME-TIME.")
    ] = None,
    set: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the newest checkpoint of the run folder.")
    ] = False,
    redis: RedisUrl = "",
) -> None:
    """Trains. The first Ctrl-C or SIGTERM finishes and saves the current step; the second stops at once.

    Raises:
        UserError: a check blocks the run, or a second Ctrl-C stopped it.
        Unreachable: Redis does not answer.
    """
    config = runfile.load(file, set or ())
    folder = RunDir(run_dir or _default_run_dir(config.name, resume=resume))
    folder.check(resume=resume)
    progress = ProgressDisplay(config, folder)
    store = ImageStore(folder.images)
    preflight = Preflight(config, folder.path, redis, starts=tuple(SPECS), store=store, resume=resume)
    with store.transaction():
        notes = [finding.text for finding in run_checks(preflight) if finding.state == "note"]
        progress.checked(preflight.train, preflight.held_out, notes)
        begin(folder, config, preflight.sets, resume=resume, excluded=preflight.excluded)
    interrupts = 0

    def interrupt(number: int, frame: object) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            raise KeyboardInterrupt
        progress.draining()
        stack.drain()

    stack = Stack(config, folder, redis)
    previous = signal.signal(signal.SIGINT, interrupt), signal.signal(signal.SIGTERM, interrupt)
    try:
        with web_client(Settings.from_environment(), stack.http["trainer"]) as trainer, running(stack), progress:
            while not stack.check():
                progress.poll(trainer)
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        raise UserError(f"stopped at once; resume with: cepo train {file} --run-dir {folder.path} --resume") from None
    finally:
        signal.signal(signal.SIGINT, previous[0])
        signal.signal(signal.SIGTERM, previous[1])
    progress.summary(file)


def _default_run_dir(name: str, *, resume: bool) -> Path:
    """A new folder under runs/, or with `resume` the newest one of that name."""
    if not resume:
        return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    earlier = sorted(Path("runs").glob(f"{name}-*"))
    if not earlier:
        raise UserError(f"no run of {name} under runs/ to resume; give its --run-dir")
    return earlier[-1]
