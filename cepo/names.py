"""Names in run files: of models and data sets, where those that start with `.`, `/` or `~` are paths and others Hugging
Face's, and of the user's functions, written `module:function`."""

from __future__ import annotations

import re
from collections.abc import Sequence

_FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def is_path(name: str) -> bool:
    """Whether a model or data name is a file or folder, and not a Hugging Face name."""
    return name.startswith((".", "/", "~"))


def require_functions(names: Sequence[str], key: str, example: str) -> None:
    """Checks the names of a user's functions.

    Args:
        key: the key of the run file, such as "reward.functions".
        example: a name in the right form, for the message.

    Raises:
        ValueError: a name is not `module:function`, or is there twice.
    """
    for name in names:
        if not _FUNCTION.fullmatch(name):
            raise ValueError(f"{key}={name!r}: write module:function, as in {example}")
    if len(set(names)) < len(names):
        raise ValueError(f"{key}={list(names)} names a function twice; leave one out")
