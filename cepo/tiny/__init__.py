"""The tiny model that ships with the project: where its folder is."""

from pathlib import Path


def path() -> Path:
    """Folder of the shipped model, as `from_pretrained` and vLLM load it."""
    return Path(__file__).parent / "model"
