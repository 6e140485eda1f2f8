"""`cepo verify FILE`: grades JSON lines and prints the verdicts in the same order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cepo.cli.arguments import read_text


def verify(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSON lines with the keys response, answer and optionally kind; - is standard input."
        ),
    ],
) -> None:
    r"""Prints a JSON line for each line of the file.

    Example:
        {"response": "\\boxed{7}", "answer": "7"} gives {"outcome": "correct", "reward": 1.0, ...}.
    """
    from services.verifier.files import verify_lines

    for line in verify_lines(read_text(file).split("\n")):
        print(line)
