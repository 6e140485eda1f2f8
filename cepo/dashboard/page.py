"""The dashboard page. It holds no data of a run: its script asks for the data, with the access token.

The curves are drawn by uPlot (files/vendor, MIT licence), which is part of the page: nothing is loaded from elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cepo.pages import document
from cepo.run.metrics import METRICS

_FOLDER = Path(__file__).parent / "files"
_REPLAY = Path(__file__).parent / "replay"
_STYLES = ("vendor/uPlot.min.css", "page.css")
_SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    "curves.js",
    "cards.js",
    "times.js",
    "groups.js",
    "browser.js",
    "replay.js",
    "runs.js",
    "start.js",
)


def page() -> str:
    """The page as one HTML document, with the description of every metric for its tooltips."""
    metrics = {key: text for section in METRICS.values() for key, text in section.items()}
    return document("Run", _FOLDER, _SCRIPTS, {"metrics": metrics}, styles=_STYLES)


def replay_page(name: str, replay: dict[str, Any]) -> str:
    """The replay of a run (`cepo.run.replay`) as one HTML document."""
    scripts, styles = ("../files/replay.js", "start.js"), ("../files/page.css", "page.css")
    return document("Replay", _REPLAY, scripts, {"name": name, "replay": replay}, styles=styles)
