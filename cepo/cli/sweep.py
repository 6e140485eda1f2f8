"""`cepo sweep SWEEP.toml --seeds 0-9`: trains a list of run files with every seed and compares them.

The same command resumes a sweep that was stopped; runs that are complete are not trained again. The sweep's folder gets
results.json, results.md and, with seeds, curves.png and curves.svg.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.table import Table

from cepo.cli.arguments import RedisUrl
from cepo.cli.sweep_plot import draw
from cepo.cli.sweep_results import RunResult, as_json, as_markdown, measured, row_cells, seed_folder, summarised
from cepo.cli.train import run as train
from cepo.errors import UserError, first_mistake
from cepo.net.files import replace_file
from cepo.run import file as runfile
from cepo.run.best import plateaued
from cepo.run.folder import RunDir
from cepo.run.local import KeptServices

if TYPE_CHECKING:
    from cepo.run.config import RunConfig


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
    seeds: Annotated[
        str, typer.Option("--seeds", metavar="0-9", help="Train every run with each of these seeds: 0-9, or 0,2,5.")
    ] = "",
    redis: RedisUrl = "",
) -> None:
    """Trains the runs that are not complete, then prints the table and writes the results.

    The seeds are in the outer loop, so that a stopped sweep has compared all runs on the seeds that it finished. The
    services are kept between runs that give them the same settings, and such runs come one after another.

    Raises:
        UserError: the sweep file, a run file or the seeds are invalid, or a run was stopped.
    """
    plan, numbers = read(file), parse_seeds(seeds)
    folder = run_dir or Path("runs") / plan.name
    runs = {entry.name: (file.parent / entry.file, [*entry.set, *(set or ())]) for entry in plan.run}
    configs = {name: runfile.load(run_file, overrides) for name, (run_file, overrides) in runs.items()}
    steps = {name: config.loop.steps for name, config in configs.items()}
    with closing(KeptServices(folder / "services", redis)) as kept:
        for seed in numbers:
            left = [name for name in runs if not ended(seed_folder(folder, name, seed), configs[name])]
            while left:
                name = next((name for name in left if kept.keeps(configs[name])), left[0])
                left.remove(name)
                run_file, overrides = runs[name]
                own = overrides if seed is None else [*overrides, f"loop.seed={seed}"]
                run, config = seed_folder(folder, name, seed), runfile.load(run_file, own)
                train(run_file, config, run, resume=run.config.is_file(), redis=redis, kept=kept)
                if not ended(run, config):
                    raise UserError(f"{name} was stopped; resume with the same command")
    results = collect(plan, folder, numbers, set or ())
    replace_file(folder / "results.json", as_json(plan.name, results, steps))
    replace_file(folder / "results.md", as_markdown(plan.name, results, steps))
    if len(numbers) > 1:
        draw(plan.name, results, folder / "curves")
    Console().print(table(plan.name, results))


def ended(run: RunDir, config: RunConfig) -> bool:
    """Whether a run has taken all its steps, or has stopped early."""
    rows = run.rows()
    return len(rows) >= config.loop.steps or plateaued(rows, config.checkpoint.patience)


def parse_seeds(text: str) -> list[int | None]:
    """The seeds that a text names. Example: "0-2,7" gives [0, 1, 2, 7]. An empty text is the seed of the run file.

    Raises:
        UserError: the text is no list of seeds, or names one twice.
    """
    if not text:
        return [None]
    seeds: list[int | None] = []
    for part in text.split(","):
        bounds = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        if bounds is None:
            raise UserError(f"--seeds {text}: write numbers and ranges, such as 0-9 or 0,2,5")
        first, last = int(bounds[1]), int(bounds[2] or bounds[1])
        if last < first:
            raise UserError(f"--seeds {text}: the range {part.strip()} is empty; write {last}-{first}")
        seeds.extend(range(first, last + 1))
    if len({*seeds}) < len(seeds):
        raise UserError(f"--seeds {text} names a seed twice; leave it out once")
    return seeds


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


def collect(plan: Sweep, folder: Path, seeds: Sequence[int | None], overrides: Sequence[str] = ()) -> list[RunResult]:
    """The results of every run of a sweep, as far as they were measured.

    Args:
        overrides: keys that the command overrode in every run.
    """
    runs = [
        RunResult(entry.name, entry.file, (*entry.set, *overrides), measured(folder, entry.name, seeds))
        for entry in plan.run
    ]
    return [summarised(run, runs[0] if at else None) for at, run in enumerate(runs)]


def table(name: str, results: Sequence[RunResult]) -> Table:
    """Held-out accuracy of each run before and after training, and its difference to the first run."""
    shown = Table("run", "before", "after", "difference", "seconds a step", title=name)
    for run in results:
        shown.add_row(run.name, *row_cells(run))
    return shown
