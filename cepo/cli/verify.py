"""`cepo verify FILE`: verdicts for JSON lines, in the same order."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cepo.errors import UserError


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("verify", help="verdicts for responses against reference answers")
    parser.add_argument("file", type=Path, help="JSON lines with response, answer and optionally kind")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints a JSON line per input line."""
    from services.verifier.files import verify_lines

    try:
        lines = options.file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{options.file} cannot be read: {error}") from error
    for line in verify_lines(lines):
        print(line)
    return 0
