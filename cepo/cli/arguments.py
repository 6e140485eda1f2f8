"""Arguments that several commands take, each said once."""

from __future__ import annotations

import argparse
from pathlib import Path

from cepo.errors import UserError


def add_run_file(parser: argparse.ArgumentParser) -> None:
    """RUN.toml and --set."""
    parser.add_argument("file", type=Path, metavar="RUN.toml", help="such as deploy/runs/tiny_cepo.toml")
    add_set(parser, "override a key of the run file")


def add_set(parser: argparse.ArgumentParser, what: str) -> None:
    """--set, as often as wanted."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=what)


def add_redis(parser: argparse.ArgumentParser) -> None:
    """--redis."""
    parser.add_argument("--redis", default="", metavar="URL", help="a Redis to use (default: an embedded one)")


def text_of(file: Path) -> str:
    """What a file that was named holds.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} cannot be read: it is not UTF-8 at byte {error.start}") from error
