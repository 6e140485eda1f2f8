"""Writes the table of docs/benchmarks.md and its chart from the newest result of every benchmark.

A benchmark's question is the first line of its docstring. The table shows the first figure of a result, or the last one
if the figures belong to numbers of workers.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._picture import draw
from benchmarks._report import RESULTS

Result = dict[str, Any]
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
CHART = PAGE.with_suffix(".png")
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def results(folder: Path) -> list[Result]:
    """The newest result of every benchmark, by name."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def question(name: str) -> str:
    """The first line of a benchmark's docstring; NAME-CASE shares the docstring of NAME."""
    source = (Path(__file__).parent / f"{name.partition('-')[0]}.py").read_text()
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0].rstrip(".")


def headline(figures: Any) -> str:
    """One figure with its name."""
    if not isinstance(figures, dict):
        return "" if figures is None else str(figures)
    names = list(figures)
    if names[0].isdigit():
        return f"{figures[names[-1]]:g} at {names[-1]}"
    return f"{figures[names[0]]:g} {names[0].replace('_', ' ')}"


def table(found: Sequence[Result]) -> str:
    """A row per result, followed by the command, machine and date of each."""
    lines = ["| benchmark | ours | against | ratio | aim | |", "|---|---|---|---|---|---|"]
    for result in found:
        held = "met" if result["met"] else "**missed**"
        cells = [
            f"`{result['name']}`: {question(result['name'])}",
            headline(result["ours"]),
            headline(result["alternative"]),
            f"{result['ratio']:g}",
            f"{result['aim']:g}",
            held,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| | command | machine | date |", "|---|---|---|---|"]
    for result in found:
        machine = ", ".join(str(result[key]) for key in ("machine", "device") if key in result)
        lines.append(f"| `{result['name']}` | `{result['command']}` | {machine} | {result['date'][:16]} |")
    return "\n".join(lines)


def write(page: Path, text: str) -> None:
    """Replaces the text between the page's two markers."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main() -> None:
    """Reads all results and writes the page and the chart."""
    found = results(RESULTS)
    draw(found, CHART)
    write(PAGE, table(found))


if __name__ == "__main__":
    main()
