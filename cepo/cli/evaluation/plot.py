"""Plots pass@k against k as a stand-alone SVG: a line and a 95 % band for each policy, in light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from cepo.cli.evaluation.estimates import Estimate

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 58, 120, 62, 46
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""The palette of Okabe and Ito, which is safe for colour-blind readers."""
STYLE = """
svg { background: #ffffff; color: #1a1a1a; font: 13px system-ui, sans-serif }
@media (prefers-color-scheme: dark) { svg { background: #16181c; color: #e6e6e6 } }
text { fill: currentColor } .grid { stroke: currentColor; opacity: .15 } .band { opacity: .15 }
"""


@dataclass(frozen=True)
class Line:
    """The line of one policy."""

    label: str
    points: dict[int, Estimate]
    """By k."""


def pass_at_k_svg(title: str, subtitle: str, lines: Sequence[Line]) -> str:
    """The SVG document."""
    ks = sorted({k for line in lines for k in line.points})
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text x="{LEFT}" y="24" font-weight="600">{escape(title)}</text>',
        f'<text x="{LEFT}" y="42" font-size="12">{escape(subtitle)}</text>',
        *(_grid_row(share / 4) for share in range(5)),
        *(_tick(k, ks) for k in ks),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">samples k</text>',
    ]
    heights = _apart([_y(line.points[max(line.points)].value) for line in lines])
    for number, line in enumerate(lines):
        parts += _drawn(line, ks, COLOURS[number % len(COLOURS)], heights[number])
    return "\n".join([*parts, "</svg>", ""])


def _drawn(line: Line, ks: Sequence[int], colour: str, label_y: float) -> list[str]:
    places = [(_x(k, ks), estimate) for k, estimate in sorted(line.points.items())]
    upper = [f"{x:.1f},{_y(e.value if e.high is None else e.high):.1f}" for x, e in places]
    lower = [f"{x:.1f},{_y(e.value if e.low is None else e.low):.1f}" for x, e in places]
    middle = [f"{x:.1f},{_y(e.value):.1f}" for x, e in places]
    dots = [f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3.5" fill="{colour}"/>' for p in middle]
    last = f"{escape(line.label)} {places[-1][1].value:.1%}"
    return [
        f'<polygon class="band" fill="{colour}" points="{" ".join([*upper, *reversed(lower)])}"/>',
        f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(middle)}"/>',
        *dots,
        f'<text x="{WIDTH - RIGHT + 10}" y="{label_y + 4:.1f}" style="fill: {colour}">{last}</text>',
    ]


def _grid_row(share: float) -> str:
    y = _y(share)
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>'
    )


def _tick(k: int, ks: Sequence[int]) -> str:
    return f'<text x="{_x(k, ks):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{k}</text>'


def _x(k: int, ks: Sequence[int]) -> float:
    span = math.log2(ks[-1])
    return LEFT + (WIDTH - LEFT - RIGHT) * (math.log2(k) / span if span else 0.5)


def _y(share: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - share)


def _apart(heights: Sequence[float], gap: float = 16.0) -> list[float]:
    """Moves labels down until the gap between neighbours is at least `gap`; keeps their order."""
    placed: dict[int, float] = {}
    for number in sorted(range(len(heights)), key=lambda number: heights[number]):
        placed[number] = max(heights[number], max(placed.values(), default=-gap) + gap)
    return [placed[number] for number in range(len(heights))]
