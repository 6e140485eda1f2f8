"""What pages share: their look, the small words of their scripts and the heat map of tokens.

A page is one HTML document with its style, script and data inside: it works offline and travels as a file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

_SHARED = Path(__file__).parent
_STYLES = ("base.css", "tokens.css")
_SCRIPTS = ("base.js", "tokens.js")


def document(
    title: str, folder: Path, scripts: Sequence[str], data: Any, *, styles: Sequence[str] = ("page.css",)
) -> str:
    """A page of body.html, styles and scripts, in their order after the shared ones, with data as JSON."""
    return _shell(title, folder, tuple(styles), tuple(scripts)).replace(
        "{data}", json.dumps(data).replace("<", "\\u003c"), 1
    )


@cache
def _shell(title: str, folder: Path, styles: tuple[str, ...], scripts: tuple[str, ...]) -> str:
    looks = [*(_SHARED / name for name in _STYLES), *(folder / name for name in styles)]
    code = [*(_SHARED / name for name in _SCRIPTS), *(folder / name for name in scripts)]
    style, script = ("\n".join(path.read_text("utf-8") for path in paths) for paths in (looks, code))
    body = (folder / "body.html").read_text("utf-8")
    page = (_SHARED / "page.html").read_text("utf-8").replace("{title}", title).replace("{body}", body)
    return page.replace("{style}", style).replace("{script}", script)
