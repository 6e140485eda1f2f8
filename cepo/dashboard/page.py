"""The dashboard page. It holds no data of a run: it asks for them, with the token."""

from __future__ import annotations

from pathlib import Path

from cepo.pages import document

_FOLDER = Path(__file__).parent / "files"
_SCRIPTS = ("curves.js", "cards.js", "times.js", "groups.js", "runs.js", "start.js")


def page() -> str:
    """One HTML document."""
    return document("Run", _FOLDER, _SCRIPTS, None)
