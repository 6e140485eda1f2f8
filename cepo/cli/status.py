"""`cepo status RUN_DIR`: the trainer's current phase and step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import httpx
import typer

from cepo.dashboard.folder import FINAL
from cepo.errors import Unreachable, UserError
from cepo.net.connections import web_client
from cepo.net.settings import Settings
from cepo.run.folder import RunDir
from cepo.run.lines import parsed


def status(run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")]) -> None:
    """Prints the trainer's status as JSON; for a run that has ended, the last status it wrote.

    Raises:
        UserError: the folder holds no run that was started on this machine.
        Unreachable: the trainer does not answer, and its last status is not final.
    """
    try:
        address = json.loads((run_dir / "services.json").read_text())["http"]["trainer"]
    except (OSError, ValueError, KeyError) as error:  # `cepo up` and `cepo eval` write addresses without a trainer
        raise UserError(f"{run_dir} holds no run that was started here; give the folder of one") from error
    try:
        with web_client(Settings.from_environment(), address) as web:
            reply = web.get("/v1/status")
        current = reply.raise_for_status().json()
    except httpx.HTTPError as error:
        path = RunDir(run_dir).status
        written = parsed(path.read_bytes())[-1:] if path.is_file() else []
        if not written or written[0].get("phase") not in FINAL:
            raise Unreachable(
                f"the trainer at {address} does not answer ({error}); the run has ended, or see logs/"
            ) from error
        (current,) = written
    print(json.dumps(current, indent=2))
