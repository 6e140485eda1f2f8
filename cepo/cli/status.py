"""`cepo status RUN_DIR`: where a run stands."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import httpx

from cepo.dashboard.folder import FINAL
from cepo.errors import Unreachable, UserError
from cepo.net.connections import web_client
from cepo.net.settings import Settings
from cepo.run.folder import RunDir
from cepo.run.lines import parsed


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("status", help="where a run stands")
    parser.add_argument("run_dir", type=Path)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the trainer's status as JSON; of a run that has ended, what it said last."""
    try:
        address = json.loads((options.run_dir / "services.json").read_text())["http"]["trainer"]
    except (OSError, ValueError, KeyError) as error:  # `cepo up` and `cepo eval` write addresses too, without a trainer
        raise UserError(f"{options.run_dir} holds no run that was started here; give the folder of one") from error
    try:
        with web_client(Settings.from_environment(), address) as web:
            reply = web.get("/v1/status")
        said = reply.raise_for_status().json()
    except httpx.HTTPError as error:
        path = RunDir(options.run_dir).status
        said = parsed(path.read_bytes())[-1:] if path.is_file() else []
        if not said or said[0].get("phase") not in FINAL:
            raise Unreachable(
                f"the trainer at {address} does not answer ({error}); the run has ended, or see logs/"
            ) from error
        (said,) = said
    print(json.dumps(said, indent=2))
    return 0
