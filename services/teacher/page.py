"""The heat map page, live or as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cepo.credit import CreditReply, CreditRequest
from cepo.pages import document

_FOLDER = Path(__file__).parent / "heatmap"
_SCRIPTS = ("page.js", "save.js", "start.js")


def live_page() -> str:
    """The page of the service: it shows the sample and scores what is pasted."""
    return _page(json.loads((_FOLDER / "sample.json").read_text("utf-8")) | {"live": True})


def standalone_page(request: CreditRequest, reply: CreditReply) -> str:
    """A reply as a file of its own."""
    sent = request.model_dump(mode="json", exclude_none=True)
    return _page({"request": sent, "reply": reply.model_dump(mode="json"), "live": False})


def _page(data: dict[str, Any]) -> str:
    return document("Token credit", _FOLDER, _SCRIPTS, data)
