"""The tiny text model that ships with the project."""

from pathlib import Path


def path() -> Path:
    """Folder of the shipped model, as `from_pretrained` and vLLM load it."""
    return Path(__file__).parent / "model"
