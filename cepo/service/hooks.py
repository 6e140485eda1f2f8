"""Imports functions of the user, which run files name as `module:function`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from cepo.errors import UserError


def load_function(name: str, key: str) -> Callable[..., Any]:
    """Imports a function from an installed package, from PYTHONPATH, or from the folder the process was started in.

    Args:
        name: such as "my_rewards:brief".
        key: the key of the run file, for messages.

    Raises:
        UserError: the function cannot be imported or is not callable; names it, with the error.
    """
    function = imported(name, f"{key}: {name}")
    if not callable(function):
        raise UserError(f"{key}: {name} is {type(function).__name__}, not a function")
    return function


def imported(name: str, title: str, load: Callable[[str], Any] | None = None) -> Any:
    """What a name `module:attribute` stands for, or what `load` makes of the name.

    Args:
        title: what the message of a failure begins with.

    Raises:
        UserError: it cannot be imported; has the error.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # as under `python -m`, however the process was started
    module, _, attribute = name.partition(":")
    try:
        return load(name) if load else getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{title} cannot be imported: {one_line(error)}; install its package, or keep the file "
            "in the folder the run is started in"
        ) from error


def one_line(error: BaseException) -> str:
    """An error in one line of at most 200 characters, `ValueError: its message`."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].removesuffix(": ")
