"""Reward functions of a user, `module:function`: loaded when a grader process starts and called inside it.

Which functions there are is the process's own setting. A message may ask for those and for nothing else, so that
nobody on the network can name code to run. A module is importable where the verifier was started: installed, on
PYTHONPATH, or a file in that folder.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cepo.errors import UserError


@dataclass(frozen=True)
class Sample:
    """What a reward function gets: one response and what is known of it."""

    response: str
    question: str
    """The last user turn."""
    answer: str
    """The reference."""
    extracted: str
    """The response's answer as written; empty when there is none."""
    accuracy: float
    tokens: int
    """Length of the response."""
    truncated: bool
    """Whether it was cut at max_tokens."""


@dataclass(frozen=True)
class Call:
    """A function and what it is called with."""

    function: str
    sample: Sample


Functions = dict[str, Callable[[Sample], Any]]


def load(names: Iterable[str]) -> Functions:
    """The functions by name; their modules run here.

    Raises:
        UserError: one cannot be imported or is no function; names it, with the error.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` has it, whichever way the process was started
    return {name: _loaded(name) for name in names}


def _loaded(name: str) -> Callable[[Sample], Any]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"reward.functions: {name} cannot be imported: {one_line(error)}; install its package, or keep the file "
            "in the folder the run is started in"
        ) from error
    if not callable(found):
        raise UserError(f"reward.functions: {name} is {type(found).__name__}, not a function")
    return found


def call(functions: Functions, asked: Call) -> float:
    """What a function adds to the reward.

    Raises:
        Exception: whatever the function raises, or what it returns is no finite number.
    """
    value = float(functions[asked.function](asked.sample))
    if not math.isfinite(value):
        raise ValueError(f"it returned {value}")
    return value


def one_line(error: BaseException) -> str:
    """An error as a message quotes it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].removesuffix(": ")
