"""Numbers that are not finite: a policy with one of them can neither sample nor learn, so it is never kept."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cepo.errors import UserError

MAX_SKIPPED = 3
"""Updates with a gradient that is not finite, in a row, after which the run ends."""


def first_not_finite(state: Any, name: str = "") -> str:
    """The name of the first tensor that holds a NaN or an infinity, such as `adapter.layers.0.lora_B`; empty if none.

    Args:
        state: tensors in nested mappings and sequences; other values are left out.
    """
    return next((at for at, value in _tensors(state, name) if not bool(torch.isfinite(value).all())), "")


def diverged(what: str, run: Path) -> UserError:
    """The error that ends a run whose training has diverged.

    Args:
        what: what is not finite, as a clause.
        run: the folder of the run.
    """
    command = f"cepo resume {shlex.quote(str(run))} --set optim.lr=RATE --allow-change optim.lr"
    return UserError(
        f"training has diverged: {what}. Lower optim.lr or optim.max_grad_norm, and resume from the newest checkpoint "
        f"with: {command}"
    )


def _tensors(state: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        if state.is_floating_point():
            yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from _tensors(value, f"{name}.{key}".lstrip("."))
    elif isinstance(state, Sequence) and not isinstance(state, str):
        for index, value in enumerate(state):
            yield from _tensors(value, f"{name}.{index}".lstrip("."))
