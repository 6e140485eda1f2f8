"""`cepo sweep SWEEP.toml`: trains a list of run files with changes, one after the other, and compares them.

A sweep that was stopped goes on where it was: runs that ended are not trained again.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.table import Table

from cepo.cli import train
from cepo.cli.arguments import add_redis, add_set
from cepo.errors import UserError
from cepo.run import file as runfile
from cepo.run.folder import RunDir


class Entry(BaseModel):
    """One run of a sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._+-]+$")
    file: str
    """Run file, relative to the sweep's."""
    set: tuple[str, ...] = ()
    """Keys it changes, as `--set` does."""


class Sweep(BaseModel):
    """What a sweep file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._+-]+$")
    run: tuple[Entry, ...] = Field(min_length=1)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("sweep", help="train several run files and compare them")
    parser.add_argument("file", type=Path, metavar="SWEEP.toml")
    parser.add_argument("--run-dir", type=Path, help="folder of the runs (default: runs/NAME)")
    add_set(parser, "change a key of every run")
    add_redis(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Trains what has not ended yet, then prints the table."""
    sweep = read(options.file)
    folder = options.run_dir or Path("runs") / sweep.name
    plans = {entry.name: (options.file.parent / entry.file, [*entry.set, *options.set]) for entry in sweep.run}
    steps = {name: runfile.load(file, changes).loop.steps for name, (file, changes) in plans.items()}
    for name, (file, changes) in plans.items():
        done = len(rows(folder / name))
        if done >= steps[name]:
            continue
        arguments = {"file": file, "set": changes, "run_dir": folder / name, "redis": options.redis}
        train.run(argparse.Namespace(**arguments, resume=RunDir(folder / name).config.is_file()))
        if len(rows(folder / name)) < steps[name]:
            raise UserError(f"{name} was stopped; go on with the same command")
    Console().print(table(sweep, folder))
    return 0


def read(path: Path) -> Sweep:
    """A sweep file.

    Raises:
        UserError: it is not there, is no TOML, or a key does not fit.
    """
    try:
        sweep = Sweep.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise UserError(f"no sweep file {path}; see deploy/sweeps for examples") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"sweep file {path} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"sweep file {path}, key {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    names = [entry.name for entry in sweep.run]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"sweep file {path} names {sorted(twice)[0]!r} twice; give each run a name of its own")
    return sweep


def rows(folder: Path) -> list[dict[str, float]]:
    """The steps of a run so far."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(sweep: Sweep, folder: Path) -> Table:
    """Held-out accuracy before and after, and the best, of every run."""
    found = Table("run", "before", "after", "best", "seconds a step", title=sweep.name)
    for entry in sweep.run:
        steps = rows(folder / entry.name)
        measured = [row["accuracy/eval"] for row in steps if "accuracy/eval" in row]
        before = steps[0].get("accuracy/eval_before") if steps else None
        seconds = sum(row["time/step_seconds"] for row in steps) / max(1, len(steps))
        shown = [f"{value:.2%}" if value is not None else "-" for value in (before, *_ends(measured))]
        found.add_row(entry.name, *shown, f"{seconds:.1f}")
    return found


def _ends(measured: list[float]) -> tuple[float | None, float | None]:
    return (measured[-1], max(measured)) if measured else (None, None)
