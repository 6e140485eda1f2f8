"""The heat map page: one HTML document with its style, script and data inside, so it works offline and travels as a
file.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from cepo.credit import CreditReply, CreditRequest

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
    return _shell().replace("{data}", json.dumps(data).replace("<", "\\u003c"), 1)


@cache
def _shell() -> str:
    style, shell = ((_FOLDER / name).read_text("utf-8") for name in ("page.css", "page.html"))
    script = "\n".join((_FOLDER / name).read_text("utf-8") for name in _SCRIPTS)
    return shell.replace("{style}", style).replace("{script}", script)
