"""`cepo sweep SWEEP.toml`: trains a list of run files one after the other and compares them.

The same command resumes a sweep that was stopped; runs that are complete are not trained again.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.table import Table

from cepo.cli.arguments import RedisUrl
from cepo.cli.train import train
from cepo.errors import UserError, first_mistake
from cepo.run import file as runfile
from cepo.run.folder import RunDir


class SweepRun(BaseModel):
    """One run of a sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._+-]+$")
    file: str
    """The run file, relative to the sweep file."""
    set: tuple[str, ...] = ()
    """Keys that the run overrides, as with `--set`."""


class Sweep(BaseModel):
    """A sweep file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._+-]+$")
    run: tuple[SweepRun, ...] = Field(min_length=1)


def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="SWEEP.toml", help="A sweep file, such as deploy/sweeps/table2.toml.")
    ],
    *,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="The folder of the runs; default: runs/NAME.")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of every run; may be repeated."),
    ] = None,
    redis: RedisUrl = "",
) -> None:
    """Trains the runs that are not complete, then prints the table.

    Raises:
        UserError: the sweep file or a run file is invalid, or a run was stopped.
    """
    plan = read(file)
    folder = run_dir or Path("runs") / plan.name
    runs = {entry.name: (file.parent / entry.file, [*entry.set, *(set or ())]) for entry in plan.run}
    steps = {name: runfile.load(run_file, overrides).loop.steps for name, (run_file, overrides) in runs.items()}
    for name, (run_file, overrides) in runs.items():
        run = RunDir(folder / name)
        if len(run.rows()) >= steps[name]:
            continue
        train(run_file, run_dir=run.path, set=overrides, resume=run.config.is_file(), redis=redis)
        if len(run.rows()) < steps[name]:
            raise UserError(f"{name} was stopped; resume with the same command")
    Console().print(table(plan, folder))


def read(path: Path) -> Sweep:
    """Reads a sweep file.

    Raises:
        UserError: the file is missing or not TOML, or a key does not fit.
    """
    try:
        plan = Sweep.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise UserError(f"no sweep file {path}; see deploy/sweeps for examples") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"sweep file {path} is not TOML: {error}") from error
    except ValidationError as error:
        raise UserError(f"sweep file {path}, key {first_mistake(error.errors())}") from error
    names = [entry.name for entry in plan.run]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"sweep file {path} names {sorted(twice)[0]!r} twice; give each run a name of its own")
    return plan


def table(plan: Sweep, folder: Path) -> Table:
    """Each run's held-out accuracy before and after training, the best one, and its seconds per step."""
    shown = Table("run", "before", "after", "best", "seconds a step", title=plan.name)
    for entry in plan.run:
        rows = RunDir(folder / entry.name).rows()
        measured = [value for row in rows if (value := row.get("accuracy/eval")) is not None]  # None was NaN
        before = rows[0].get("accuracy/eval_before") if rows else None
        after, best = (measured[-1], max(measured)) if measured else (None, None)
        seconds = sum(row["time/step_seconds"] for row in rows) / max(1, len(rows))
        cells = [f"{value:.2%}" if value is not None else "-" for value in (before, after, best)]
        shown.add_row(entry.name, *cells, f"{seconds:.1f}")
    return shown
