"""Arguments and options that several commands take."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cepo.errors import UserError

RunFile = Annotated[Path, typer.Argument(metavar="RUN.toml", help="A run file, such as deploy/runs/tiny_cepo.toml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the run file; may be repeated."),
]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-change",
        metavar="KEY",
        help="Let a resume change this key although it changes what the run computes; may be repeated.",
    ),
]
RedisUrl = Annotated[
    str, typer.Option("--redis", metavar="URL", help="Use this Redis instead of an embedded one.", show_default=False)
]


def read_text(file: Path) -> str:
    """The text of a file that the user named, or of standard input for "-"; a byte order mark is left out.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} cannot be read: it is not UTF-8 at byte {error.start}") from error
