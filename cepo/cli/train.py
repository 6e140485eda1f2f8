"""`cepo train RUN.toml` and `cepo resume RUN_DIR`: start every process, train, show progress and print the gain."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cepo.cli.arguments import AllowChange, Overrides, RedisUrl, RunFile
from cepo.cli.preflight.checks import run_checks
from cepo.cli.preflight.machine_checks import kv_cache_bytes
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
from cepo.run.local import KeptServices, Stack, running
from cepo.run.lock import check_free, locked
from cepo.run.resuming import check_changes, record

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

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
    allow_change: AllowChange = None,
    redis: RedisUrl = "",
) -> None:
    """Trains. The first Ctrl-C or SIGTERM finishes and saves the current step; the second stops at once.

    Raises:
        UserError: a check blocks the run, the resume would change what it computes, or a second Ctrl-C stopped it.
        Unreachable: Redis does not answer.
    """
    config = runfile.load(file, set or ())
    folder = RunDir(run_dir or _default_run_dir(config.name, resume=resume))
    if allow_change and not resume:
        raise UserError("--allow-change is for a run that is resumed; give --resume too, or leave it out")
    run(file, config, folder, resume=resume, allowed=allow_change or (), redis=redis)


def resume(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")],
    *,
    set: Overrides = None,
    allow_change: AllowChange = None,
    redis: RedisUrl = "",
) -> None:
    """Resumes a run with its own configuration, `RUN_DIR/config.toml`.

    Raises:
        UserError: the folder holds no run, a check blocks the run, or `set` would change what it computes.
        Unreachable: Redis does not answer.
    """
    folder = RunDir(run_dir)
    folder.check(resume=True)
    config = runfile.load(folder.config, set or ())
    run(folder.config, config, folder, resume=True, allowed=allow_change or (), redis=redis)


def run(
    file: Path,
    config: RunConfig,
    folder: RunDir,
    *,
    resume: bool,
    allowed: Sequence[str] = (),
    redis: str = "",
    kept: KeptServices | None = None,
) -> None:
    """Runs or resumes a run to its end.

    A run that is refused has started nothing and written nothing.

    Args:
        file: the run file that the summary suggests for further runs.
        allowed: fixed keys that a resume may change.
        kept: services that run on after the run; default: the run starts and stops its own.

    Raises:
        UserError: a check blocks the run, the resume would change what it computes, or a second Ctrl-C stopped it.
        Unreachable: Redis does not answer.
    """
    folder.check(resume=resume)
    changed = check_changes(runfile.load(folder.config), config, allowed, folder) if resume else []
    check_free(folder.launcher_lock, folder.trainer_lock)
    progress = ProgressDisplay(config, folder, redis)
    store = ImageStore(folder.images)
    starts = ("trainer",) if kept is not None and kept.keeps(config) else tuple(SPECS)
    preflight = Preflight(config, folder.path, redis, starts=starts, store=store, resume=resume)
    with ExitStack() as held:
        with store.transaction():
            notes = [finding.text for finding in run_checks(preflight) if finding.state == "note"]
            progress.checked(preflight.train, preflight.held_out, notes, changed)
            held.enter_context(locked(folder.launcher_lock))
            begin(folder, config, preflight.sets, resume=resume, excluded=preflight.excluded)
            record(folder, changed)
        if kept is None:
            stack = Stack(config, folder, redis, kv_cache_bytes=kv_cache_bytes(config))
            _train(stack, progress, running)
        else:
            _train(kept.stack(config, folder, kv_cache_bytes(config)), progress, kept.running)
    progress.summary(file)


def _train(stack: Stack, progress: ProgressDisplay, running: Callable[[Stack], AbstractContextManager[Stack]]) -> None:
    """Runs the processes until the run has ended, or is drained."""
    interrupts = 0

    def interrupt(number: int, frame: object) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            raise KeyboardInterrupt
        progress.draining()
        stack.drain()

    previous = signal.signal(signal.SIGINT, interrupt), signal.signal(signal.SIGTERM, interrupt)
    try:
        with web_client(Settings.from_environment(), stack.http["trainer"]) as trainer, running(stack), progress:
            while not stack.check():
                progress.poll(trainer)
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        raise UserError(f"stopped at once; resume with: {progress.resume_command}") from None
    finally:
        signal.signal(signal.SIGINT, previous[0])
        signal.signal(signal.SIGTERM, previous[1])


def _default_run_dir(name: str, *, resume: bool) -> Path:
    """A new folder under runs/, or with `resume` the newest one of that name."""
    if not resume:
        return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    earlier = sorted(Path("runs").glob(f"{name}-*"))
    if not earlier:
        raise UserError(f"no run of {name} under runs/ to resume; give its --run-dir")
    return earlier[-1]
