"""Names of models and data sets: those that start with `.`, `/` or `~` are paths, others Hugging Face's."""

from __future__ import annotations


def is_path(name: str) -> bool:
    """Whether a model or data name is a file or folder, and not a Hugging Face name."""
    return name.startswith((".", "/", "~"))
