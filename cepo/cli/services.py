"""`cepo up RUN.toml` and `cepo down`: rollout, teacher and verifier without a trainer, for clients of their APIs.

A supervisor process outlives the command and restarts services that die; its files are under runs/services.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import httpx
import typer

from cepo.cli.arguments import Overrides, RedisUrl, RunFile
from cepo.cli.preflight.checks import run_checks
from cepo.cli.preflight.machine_checks import kv_cache_bytes
from cepo.cli.preflight.preflight import Preflight
from cepo.errors import UserError
from cepo.net.connections import web_client
from cepo.net.files import make_folder, open_log, replace_file
from cepo.net.settings import Settings
from cepo.run import file as runfile
from cepo.run.folder import RunDir
from cepo.run.local import Stack, running

FOLDER = Path("runs") / "services"
ENGINES = ("rollout", "verifier", "teacher")
READY_SECONDS = 600.0
"""Long enough for a large model to load."""
DOWN_SECONDS = 30.0
POLL_SECONDS = 0.25


def up(
    file: RunFile,
    *,
    set: Overrides = None,
    redis: RedisUrl = "",
    supervise: Annotated[bool, typer.Option("--supervise", hidden=True)] = False,
) -> None:
    """Starts the services and waits until every one is ready.

    Args:
        supervise: be the supervisor itself, which restarts services that die, until SIGTERM.

    Raises:
        UserError: services run here already, or a check blocks the start.
    """
    config, folder = runfile.load(file, set or ()), RunDir(FOLDER)
    if supervise:
        planned = kv_cache_bytes(config)
        _supervise(Stack(config, folder, redis, ENGINES, own_ports=False, kv_cache_bytes=planned))
        return
    pid = supervisor()
    if pid is not None:
        raise UserError(f"services run here already (process {pid}); stop them with: cepo down")
    for _ in run_checks(Preflight(config, folder.path, redis, starts=ENGINES)):
        pass  # a check raises what would keep the services from starting
    make_folder(folder.logs)
    services_json, log = folder.path / "services.json", folder.logs / "supervisor.log"
    services_json.unlink(missing_ok=True)
    overrides = [word for override in set or () for word in ("--set", override)]
    command = [sys.executable, "-m", "cepo", "up", str(file), *overrides, "--redis", redis]
    with open_log(log, fresh=True) as output:
        process = subprocess.Popen(
            [*command, "--supervise"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    replace_file(_pid_file(), str(process.pid))
    try:
        addresses = _await_ready(process, services_json, log)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    for name, address in addresses["http"].items():
        print(f"{name:<9} {address}  gRPC {addresses['grpc'][name]}")
    print(f"redis     {addresses['redis']}\nlogs      {folder.logs}\nstop with: cepo down")


def _supervise(stack: Stack) -> None:
    """Restarts services that die, until SIGTERM."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    with contextlib.suppress(KeyboardInterrupt), running(stack):
        while True:
            stack.check()
            time.sleep(POLL_SECONDS)


def down() -> None:
    """Stops the supervisor, which stops the services that it started.

    Raises:
        UserError: no services run here, or the supervisor does not end.
    """
    pid = supervisor()
    if pid is None:
        others = [f"cd {quote(str(folder))} && cepo down" for folder in _elsewhere()]
        fix = (
            f"stop those of another folder with: {' or '.join(others)}"
            if others
            else "start them with: cepo up RUN.toml"
        )
        raise UserError(f"no services run here; {fix}")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_SECONDS
    while supervisor() is not None:
        if time.monotonic() > deadline:
            raise UserError(f"process {pid} does not end; see {FOLDER / 'logs'}")
        time.sleep(POLL_SECONDS)
    _pid_file().unlink()


def supervisor() -> int | None:
    """The id of the supervisor of this folder; None if none runs."""
    try:
        pid = int(_pid_file().read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"--supervise" in command else None  # another process may have the id by now


def _elsewhere() -> list[Path]:
    """The working directories of this user's supervisors, which are where `cepo down` stops them."""
    folders = []
    for process in sorted(Path("/proc").glob("[0-9]*")):
        with contextlib.suppress(OSError):  # it ended, or is another user's
            words = (process / "cmdline").read_bytes().split(b"\0")
            if {b"cepo", b"up", b"--supervise"} <= set(words) and process.stat().st_uid == os.getuid():
                folders.append((process / "cwd").readlink())
    return folders


def _pid_file() -> Path:
    return FOLDER / "supervisor.pid"


def _await_ready(process: subprocess.Popen[bytes], services_json: Path, log: Path) -> dict[str, Any]:
    """The addresses that the supervisor wrote, once every service is ready."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise UserError(f"the services did not start: {last.removeprefix('cepo: ')}")
        if services_json.is_file():
            addresses: dict[str, Any] = json.loads(services_json.read_text())
            with web_client(Settings.from_environment()) as web:
                if all(_ready(web, address) for address in addresses["http"].values()):
                    return addresses
        time.sleep(POLL_SECONDS)
    raise UserError(f"the services are not ready after {READY_SECONDS:.0f} s; see {log.parent}")


def _ready(web: httpx.Client, address: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return web.get(f"{address}/readyz").status_code == 200
    return False
