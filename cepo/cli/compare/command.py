"""`cepo compare RUN_DIR OTHER_RUN_DIR`: what differs between runs, and by how much."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cepo.cli.compare.page import page
from cepo.cli.compare.runs import read_runs
from cepo.cli.compare.text import show
from cepo.errors import StorageError, UserError
from cepo.net.files import replace_file


def compare(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="Two or more run folders; the first is the baseline.")
    ],
    *,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="OUT", help="Also write the comparison as one HTML file.")
    ] = None,
) -> None:
    """Prints settings, held-out accuracy with intervals, curves, problems that flipped and credit side by side.

    Raises:
        UserError: a folder holds no run, or the HTML file cannot be written.
    """
    runs = read_runs(run_dirs)
    show(runs, Console(highlight=False, markup=False))
    if html is not None:
        try:
            replace_file(html, page(runs))
        except StorageError as error:
            raise UserError(f"--html {error}") from error
        typer.echo(f"comparison written to {html}", err=True)
