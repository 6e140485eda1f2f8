"""The page of the GPU benchmark, from its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def page(result: Mapping[str, Any], questions: Mapping[str, str]) -> str:
    """A heading with its question for each part, and its figures as a table of names and values."""
    lines = [
        f"# CEPO on a GPU: {result['shape']}",
        "",
        f"`{result['command']}` on {result['machine']}, {result['date'][:16]}.",
    ]
    for name, figures in result["parts"].items():
        lines += ["", f"## {questions[name]}", ""]
        if "error" in figures:
            lines.append(f"**Not measured:** {figures['error']}")
            continue
        lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in flat(figures))]
    return "\n".join(lines) + "\n"


def flat(figures: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """Every number and text with its path. Example: ("ours, seconds", "0.12")."""
    if isinstance(figures, Mapping):
        for key, value in figures.items():
            yield from flat(value, f"{above}, {key}".removeprefix(", ").replace("_", " "))
    elif isinstance(figures, list):
        for at, value in enumerate(figures):
            yield from flat(value, f"{above} {at + 1}")
    elif isinstance(figures, float):
        yield above, f"{figures:.4g}"
    else:
        yield above, "" if figures is None else str(figures)
