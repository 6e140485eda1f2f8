"""The chart of docs/benchmarks.md: ours beside the alternative in units, one row for each comparison.

The title of a row is its result, computed from the recorded figures. Whiskers show the spread where a result holds it:
the 95 % Wilson interval of a share of verdicts, and the slowest of the ten versions of `reload`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 1000, 92, 165, 175, 84, 52
OURS, THEIRS, INK, SOFT = "#0072b2", "#a3a9b3", "#16181d", "#5b6270"
TITLE = "CEPO trains, scores and grades faster than the alternatives on a CPU; token credit has a price"
FOOT = (
    "Bars are medians of the recorded rounds. Whiskers: 95 % interval of a share, slowest of ten reloads; other "
    "results hold none."
)
Z95 = 1.96


class Comparison(NamedTuple):
    """How a benchmark is drawn."""

    name: str
    """Of the result."""
    figure: str
    """The key in `ours` and `alternative`."""
    unit: str
    theirs: str
    """The label of the alternative."""
    title: str
    """The result as a sentence; {times} is how many times better ours is, {ours} and {theirs} the figures,
    {cases} the number of cases."""
    less_is_better: bool = False


COMPARISONS = (
    Comparison(
        "train-wide",
        "samples_per_second",
        "samples/s",
        "TRL",
        "Training, responses up to 512 tokens: {times} times the samples of TRL",
    ),
    Comparison(
        "train",
        "samples_per_second",
        "samples/s",
        "TRL",
        "Training, responses of 27 tokens: {times} times the samples of TRL",
    ),
    Comparison(
        "verdicts",
        "right_share",
        "% right",
        "math-verify",
        "Verdicts: {ours} right of {cases} hard cases, {theirs} of math-verify",
    ),
    Comparison(
        "verify",
        "items_per_second",
        "answers/s",
        "math-verify",
        "Grading with hostile answers: {times} times the answers of math-verify",
    ),
    Comparison(
        "learner",
        "seconds",
        "s",
        "padded PEFT loop",
        "Forward and backward pass of a group: {times} times as fast as a padded loop",
        less_is_better=True,
    ),
    Comparison(
        "score",
        "seconds",
        "s",
        "padded pass",
        "Scoring a group in three contexts: {times} times as fast as a padded pass",
        less_is_better=True,
    ),
    Comparison(
        "vision",
        "seconds",
        "s",
        "once a context",
        "Scoring a group with an image: {times} times as fast with the image encoded once",
        less_is_better=True,
    ),
    Comparison(
        "reload",
        "first_token_seconds",
        "s",
        "prime-rl polls",
        "New weights give a token after {ours}; prime-rl polls every {theirs} (published)",
        less_is_better=True,
    ),
    Comparison(
        "step",
        "step_seconds",
        "s",
        "GRPO",
        "The price of token credit: a step takes {ours}, with GRPO {theirs}",
        less_is_better=True,
    ),
)


class Bar(NamedTuple):
    """A figure with its spread, in the unit of its row."""

    value: float
    low: float
    high: float


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent cases. Example: 0.5 of 100 is (0.404, 0.596)."""
    spread = Z95 * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    middle, scale = share + Z95**2 / (2 * count), 1 + Z95**2 / count
    return (middle - spread) / scale, (middle + spread) / scale


def bar(comparison: Comparison, result: Mapping[str, Any], side: str) -> Bar:
    """The bar of `ours` or `alternative`."""
    figures = result[side]
    value = float(figures.get(comparison.figure, next(iter(figures.values()))))
    if comparison.unit.startswith("%"):
        low, high = wilson(value, result["cases"])
        return Bar(100 * value, 100 * low, 100 * high)
    return Bar(value, value, float(figures.get(comparison.figure.replace("_seconds", "_slowest_seconds"), value)))


def sentence(comparison: Comparison, ours: Bar, theirs: Bar, cases: object = "") -> str:
    """The title of a row."""
    times = theirs.value / ours.value if comparison.less_is_better else ours.value / theirs.value
    words = {"ours": shown(ours, comparison.unit), "theirs": shown(theirs, comparison.unit)}
    return comparison.title.format(times=f"{times:.1f}", cases=cases, **words)


def shown(figure: Bar, unit: str) -> str:
    """A figure with its unit. Example: 0.0329 and "s" give "0.033 s"."""
    digits = 3 if figure.value < 0.1 else 2 if figure.value < 10 else 1
    return f"{figure.value:.{digits}f} {unit.split(' ')[0]}"


def draw(results: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draws the comparisons whose results are there."""
    by_name = {result["name"]: result for result in results}
    rows = [comparison for comparison in COMPARISONS if comparison.name in by_name]
    size = (WIDTH, TOP + ROW * len(rows) + BOTTOM)
    image = Image.new("RGB", (2 * size[0], 2 * size[1]), "white")
    canvas = ImageDraw.Draw(image)
    _text(canvas, 24, 30, TITLE, 21, INK)
    for at, comparison in enumerate(rows):
        _row(canvas, TOP + at * ROW, comparison, by_name[comparison.name])
    _text(canvas, 24, size[1] - 26, FOOT, 14, SOFT)
    image.resize(size, Image.Resampling.LANCZOS).quantize(48).save(file, optimize=True)


def _row(canvas: ImageDraw.ImageDraw, top: int, comparison: Comparison, result: Mapping[str, Any]) -> None:
    sides = [bar(comparison, result, side) for side in ("ours", "alternative")]
    scale = (WIDTH - LEFT - RIGHT) / max(side.high for side in sides)
    _text(canvas, 24, top + 8, sentence(comparison, sides[0], sides[1], result.get("cases")), 18, INK)
    labels = zip(sides, (OURS, THEIRS), ("CEPO", comparison.theirs), strict=True)
    for at, (side, colour, label) in enumerate(labels):
        y, end = top + 24 + at * 25, LEFT + scale * side.value
        _text(canvas, LEFT - 10, y + 10, label, 15, INK if not at else SOFT, anchor="rm")
        canvas.rectangle(_doubled(LEFT, y, max(end, LEFT + 2), y + 20), colour)
        low, high = LEFT + scale * side.low, LEFT + scale * side.high
        if high - low > 1:
            canvas.line(_doubled(low, y + 10, high, y + 10), INK, 3)
            for place in (low, high):
                canvas.line(_doubled(place, y + 5, place, y + 15), INK, 3)
        _text(canvas, max(end, high) + 8, y + 10, shown(side, comparison.unit), 15, INK if not at else SOFT)


def _text(
    canvas: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int, colour: str, anchor: str = "lm"
) -> None:
    canvas.text((2 * x, 2 * y), text, colour, ImageFont.load_default(2 * size), anchor=anchor)


def _doubled(*places: float) -> tuple[float, float, float, float]:
    left, top, right, bottom = (2 * place for place in places)
    return left, top, right, bottom
