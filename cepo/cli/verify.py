"""`cepo verify FILE`: verdicts for JSON lines, in the same order."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cepo.cli.arguments import text_of


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("verify", help="verdicts for responses against reference answers")
    parser.add_argument("file", type=Path, help="JSON lines with response, answer and optionally kind")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints a JSON line per input line."""
    from services.verifier.files import verify_lines

    for line in verify_lines(text_of(options.file).split("\n")):
        print(line)
    return 0
