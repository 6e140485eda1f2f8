"""A comparison as one HTML file that works offline. The curves are drawn by uPlot, which is part of the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cepo.dashboard
from cepo.cli.compare.differences import Flip, credit_pair, flips, held_out, shades
from cepo.cli.compare.runs import ComparedRun, differing
from cepo.cli.compare.text import basis, difference, share, shown
from cepo.pages import document
from cepo.run.lines import Row
from cepo.run.metrics import METRICS

MAX_FLIPS = 200
"""The flipped problems of each run that the file holds."""
MAX_ROWS = 2000
"""The steps of each run that the file holds; of longer runs every n-th."""
_FOLDER = Path(__file__).parent / "files"
_VENDOR = Path(cepo.dashboard.__file__).parent / "files" / "vendor"


def page(runs: Sequence[ComparedRun]) -> str:
    """Returns the comparison of every run with the first as an HTML document."""
    keys = sorted({key for run in runs for row in run.rows for key, value in row.items() if _is_number(value)})
    described = {key: text for section in METRICS.values() for key, text in section.items()}
    data = {
        "names": [run.name for run in runs],
        "settings": [[key, *map(shown, values)] for key, values in differing(runs).items()],
        "accuracy": [_accuracy(run, runs[0]) for run in runs],
        "rows": [_rows(run) for run in runs],
        "keys": [key for key in keys if key != "step"],
        "described": {key: described[key] for key in keys if key in described},
        "flips": [[_flip(flip) for flip in flips(run, runs[0])[:MAX_FLIPS]] for run in runs[1:]],
        "pairs": [_pair(run, runs[0]) for run in runs[1:]],
    }
    styles = (str(_VENDOR / "uPlot.min.css"), "page.css")
    return document("Comparison", _FOLDER, (str(_VENDOR / "uPlot.iife.min.js"), "page.js"), data, styles=styles)


def _accuracy(run: ComparedRun, first: ComparedRun) -> list[str]:
    result = held_out(run, first)
    before = run.rows[0].get("accuracy/eval_before") if run.rows else None
    return [share(before), share(result.accuracy), difference(result), basis(result)]


def _rows(run: ComparedRun) -> list[Row]:
    every = -(-len(run.rows) // MAX_ROWS) or 1
    return [
        {key: value for key, value in row.items() if _is_number(value)}
        for at, row in enumerate(run.rows)
        if at % every == 0 or row.get("accuracy/eval") is not None or at == len(run.rows) - 1
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")


def _flip(flip: Flip) -> dict[str, Any]:
    return {
        "question": flip.question,
        "answer": flip.answer,
        "shares": [flip.before, flip.after],
        "samples": [_sample(each) for each in flip.samples],
    }


def _pair(run: ComparedRun, first: ComparedRun) -> dict[str, Any] | None:
    pair = credit_pair(run, first)
    if pair is None:
        return None
    samples = [_sample(each) | {"shades": shades(each)} for each in pair.samples]
    return {"step": pair.step, "question": pair.question, "answer": pair.answer, "samples": samples}


def _sample(sample: Row) -> dict[str, Any]:
    return {key: sample.get(key) for key in ("text", "tokens", "outcome", "extracted")}
