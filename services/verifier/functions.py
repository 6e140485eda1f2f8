"""A user's reward functions, written `module:function`: loaded when a grader process starts and called inside it.

A setting of the process (CEPO_REWARD_FUNCTIONS) lists the functions. A message can only name functions of that list,
so no message can make the verifier run other code. The module must be importable where the verifier was started:
installed, on PYTHONPATH, or a file in that folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cepo.service.hooks import load_function


@dataclass(frozen=True)
class Sample:
    """What a reward function receives: one response and what is known about it."""

    response: str
    question: str
    """The last user turn."""
    answer: str
    """The reference answer."""
    extracted: str
    """The answer of the response as written; empty if there is none."""
    accuracy: float
    tokens: int
    """Number of tokens that the policy sampled."""
    truncated: bool
    """Whether sampling stopped at max_tokens."""


@dataclass(frozen=True)
class Call:
    """A reward function's name and its argument."""

    function: str
    sample: Sample


Functions = dict[str, Callable[[Sample], Any]]


def load(names: Iterable[str]) -> Functions:
    """Imports the functions; returns them by name.

    Raises:
        UserError: a function cannot be imported or is not callable; names it, with the error.
    """
    return {name: load_function(name, "reward.functions") for name in names}


def call(functions: Functions, asked: Call) -> float:
    """What a function adds to the reward.

    Raises:
        Exception: the function raised it, or its value is not a finite number.
    """
    value = float(functions[asked.function](asked.sample))
    if not math.isfinite(value):
        raise ValueError(f"it returned {value}")
    return value
