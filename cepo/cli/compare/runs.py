"""Reads the runs of a comparison: configuration, metrics, held-out groups and training groups."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cepo.errors import UserError
from cepo.run.folder import RunDir
from cepo.run.lines import Row
from cepo.run.rollouts import Rollouts

TRAIN, HELD_OUT = "train", "held-out"


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs."""

    name: str
    """The name of its folder, or its path if two folders have the same name."""
    config: Mapping[str, Any]
    rows: Sequence[Row]
    """Of metrics.jsonl."""
    rollouts: Rollouts

    @property
    def settings(self) -> dict[str, Any]:
        """Every key of the run file, such as {"optim.lr": 1e-5, ...}."""
        return dict(_leaves(self.config))

    @property
    def steps(self) -> set[int]:
        """The steps whose training groups are on disk."""
        return {file.number for file in self.rollouts.files() if file.source == TRAIN}

    def held_out(self) -> tuple[int, list[Row]]:
        """The newest policy version with held-out groups, and these groups; (0, []) if there are none."""
        versions = [file.number for file in self.rollouts.files() if file.source == HELD_OUT]
        return (max(versions), self.rollouts.groups(HELD_OUT, max(versions))) if versions else (0, [])


def read_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """Reads the folders.

    Raises:
        UserError: there is one folder alone, a folder is there twice, or it holds no run.
    """
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise UserError("give two or more different run folders: cepo compare RUN_DIR OTHER_RUN_DIR")
    names = [folder.resolve().name for folder in folders]
    unique = len(set(names)) == len(names)
    return [_read(folder, name if unique else str(folder)) for folder, name in zip(folders, names, strict=True)]


def differing(runs: Sequence[ComparedRun]) -> dict[str, list[Any]]:
    """The keys whose values differ, each with the value of every run; None stands for a key that a run does not have.

    With different methods, the keys that only one of the methods has are left out: `algorithm.name` stands for them.
    """
    settings = [run.settings for run in runs]
    keys = dict.fromkeys(key for each in settings for key in each)
    several_methods = len({each.get("algorithm.name") for each in settings}) > 1

    def counts(key: str) -> bool:
        values = [each.get(key) for each in settings]
        of_one_method = several_methods and key.startswith("algorithm.") and any(key not in each for each in settings)
        return not of_one_method and any(value != values[0] for value in values)

    return {key: [each.get(key) for each in settings] for key in keys if counts(key)}


def _read(folder: Path, name: str) -> ComparedRun:
    run = RunDir(folder)
    if not run.config.is_file():
        raise UserError(f"{folder} holds no run; give a folder with config.toml and metrics.jsonl")
    try:
        config = tomllib.loads(run.config.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{run.config} cannot be read: {error}; restore it from a copy") from error
    return ComparedRun(name, config, run.rows(), Rollouts(run.rollouts))


def _leaves(tree: Mapping[str, Any], parents: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{parents}{name}.")
        else:
            yield parents + name, value
