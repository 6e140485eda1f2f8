"""The heat map page, live or as a file.

The page bundles its data as JSON: {"request": ..., "reply": ..., "live": true, "methods": {"cepo": {"title": "CEPO",
"numerator": "logp_positive", "denominator": "logp_negative"}, ...}}, and "items" of requests and replies if there are
several. With `methods` the page contrasts the log-probs of a reply as any method does, without another call.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cepo.credit import METHODS, CreditReply, CreditRequest, Method
from cepo.messages.groups import ContextName
from cepo.pages import document
from services.teacher.weighing import rule_of

_FOLDER = Path(__file__).parent / "heatmap"
_SCRIPTS = ("page.js", "list.js", "rows.js", "drop.js", "save.js", "start.js")
_COLUMNS = {
    ContextName.PLAIN: "logp_plain",
    ContextName.ANSWER: "logp_positive",
    ContextName.REJECTED: "logp_negative",
}


def live_page() -> str:
    """Returns the service's page, which shows the sample and scores what the user enters."""
    return _page(json.loads((_FOLDER / "sample.json").read_text("utf-8")) | {"live": True})


def standalone_page(request: CreditRequest, reply: CreditReply) -> str:
    """Returns a reply as one HTML file that works offline."""
    return standalone_list([(request, reply)])


def standalone_list(scored: Sequence[tuple[CreditRequest, CreditReply]]) -> str:
    """Returns requests and their replies as one HTML file that works offline, with a list of all their responses."""
    items = [
        {"request": request.model_dump(mode="json", exclude_none=True), "reply": reply.model_dump(mode="json")}
        for request, reply in scored
    ]
    return _page({**items[0], "live": False} | ({"items": items} if len(items) > 1 else {}))


def _page(data: dict[str, Any]) -> str:
    return document("Token credit", _FOLDER, _SCRIPTS, data | {"methods": _methods()})


def _methods() -> dict[str, dict[str, str]]:
    """For each method, its title and the two log-probs of a token whose difference is delta."""
    rules = {name: rule_of(Method.model_validate({"name": name})) for name in METHODS}
    return {
        name: {
            "title": name.upper(),
            "numerator": _COLUMNS[rule.numerator],
            "denominator": _COLUMNS[rule.denominator],
        }
        for name, rule in rules.items()
    }
