"""`cepo up RUN.toml` and `cepo down`: rollout, teacher and verifier without a trainer, for whoever calls their APIs.

A supervisor that outlives the command keeps them alive; what it writes is under runs/services.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from cepo.cli.arguments import add_redis, add_run_file
from cepo.cli.preflight.checks import run_checks
from cepo.cli.preflight.preflight import Preflight
from cepo.errors import UserError
from cepo.net.connections import web_client
from cepo.net.settings import Settings
from cepo.run import file as runfile
from cepo.run.folder import RunDir
from cepo.run.local import Stack, running

FOLDER = Path("runs") / "services"
ENGINES = ("rollout", "verifier", "teacher")
READY_SECONDS = 600.0
"""For a model of any size to load."""
DOWN_SECONDS = 30.0
POLL_SECONDS = 0.25


def add_parser(commands: Any) -> None:
    up = commands.add_parser("up", help="start rollout, teacher and verifier, and print their addresses")
    add_run_file(up)
    add_redis(up)
    up.add_argument("--supervise", action="store_true", help=argparse.SUPPRESS)
    up.set_defaults(run=lambda options: supervise(options) if options.supervise else start(options))
    down = commands.add_parser("down", help="stop what `cepo up` started here")
    down.set_defaults(run=stop)


def start(options: argparse.Namespace) -> int:
    """Starts the supervisor and waits until every service is ready."""
    pid = supervisor()
    if pid is not None:
        raise UserError(f"services run here already (process {pid}); stop them with: cepo down")
    config, run = runfile.load(options.file, options.set), RunDir(FOLDER)
    for _ in run_checks(Preflight(config, run.path, options.redis, starts=ENGINES)):
        pass  # raises what would keep the services from starting
    run.logs.mkdir(parents=True, exist_ok=True)
    addresses, log = run.path / "services.json", run.logs / "supervisor.log"
    addresses.unlink(missing_ok=True)
    overrides = [word for override in options.set for word in ("--set", override)]
    command = [sys.executable, "-m", "cepo", "up", str(options.file), *overrides, "--redis", options.redis]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--supervise"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _pid_file().write_text(str(process.pid))
    try:
        found = _await_ready(process, addresses, log)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    for name, address in found["http"].items():
        print(f"{name:<9} {address}  gRPC {found['grpc'][name]}")
    print(f"redis     {found['redis']}\nlogs      {run.logs}\nstop with: cepo down")
    return 0


def supervise(options: argparse.Namespace) -> int:
    """Keeps the services alive until SIGTERM."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    stack = Stack(runfile.load(options.file, options.set), RunDir(FOLDER), options.redis, ENGINES, own_ports=False)
    with contextlib.suppress(KeyboardInterrupt), running(stack):
        while True:
            stack.check()
            time.sleep(POLL_SECONDS)
    return 0


def stop(options: argparse.Namespace) -> int:
    """Ends the supervisor, which ends what it started."""
    pid = supervisor()
    if pid is None:
        raise UserError("no services run here; start them with: cepo up RUN.toml")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_SECONDS
    while supervisor() is not None:
        if time.monotonic() > deadline:
            raise UserError(f"process {pid} does not end; see {FOLDER / 'logs'}")
        time.sleep(POLL_SECONDS)
    _pid_file().unlink()
    return 0


def supervisor() -> int | None:
    """The process that keeps the services of this folder alive; None: there is none."""
    try:
        pid = int(_pid_file().read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"--supervise" in command else None  # the number may have been given to another process


def _pid_file() -> Path:
    return FOLDER / "supervisor.pid"


def _await_ready(process: subprocess.Popen[bytes], addresses: Path, log: Path) -> dict[str, Any]:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise UserError(f"the services did not start: {last.removeprefix('cepo: ')}")
        if addresses.is_file():
            found: dict[str, Any] = json.loads(addresses.read_text())
            with web_client(Settings.from_environment()) as web:
                if all(_ready(web, address) for address in found["http"].values()):
                    return found
        time.sleep(POLL_SECONDS)
    raise UserError(f"the services are not ready after {READY_SECONDS:.0f} s; see {log.parent}")


def _ready(web: httpx.Client, address: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return web.get(f"{address}/readyz").status_code == 200
    return False
