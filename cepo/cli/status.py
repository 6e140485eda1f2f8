"""`cepo status RUN_DIR`: where a run stands."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import httpx

from cepo.auth import call_metadata
from cepo.errors import Unreachable, UserError
from cepo.settings import Settings


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("status", help="where a run stands")
    parser.add_argument("run_dir", type=Path)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the trainer's status as JSON."""
    try:
        address = json.loads((options.run_dir / "services.json").read_text())["http"]["trainer"]
    except OSError as error:
        raise UserError(f"{options.run_dir} holds no run that was started here") from error
    try:
        reply = httpx.get(f"{address}/v1/status", headers=dict(call_metadata(Settings.from_environment().token)))
        reply.raise_for_status()
    except httpx.HTTPError as error:
        raise Unreachable(
            f"the trainer at {address} does not answer ({error}); the run has ended, or see logs/"
        ) from error
    print(json.dumps(reply.json(), indent=2))
    return 0
