"""The shared parts of the HTML pages: their style, helper functions and the heat map of tokens.

A page is one HTML document that contains its style, script and data, so it works offline and can be sent as a file.
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
    """Returns a page as one HTML document.

    Args:
        title: the document's title.
        folder: holds `body.html` and the styles and scripts of the page.
        scripts: file names in the order of execution, after the shared scripts.
        data: the page's data; the scripts read it from the variable `bundled`.
        styles: file names in the order of precedence, after the shared styles.
    """
    return _shell(title, folder, tuple(styles), tuple(scripts)).replace(
        "{data}", json.dumps(data).replace("<", "\\u003c"), 1
    )


@cache
def shared_style() -> str:
    """The style of every page: colours for light and dark, cards, buttons and fields."""
    return (_SHARED / "base.css").read_text("utf-8")


@cache
def _shell(title: str, folder: Path, styles: tuple[str, ...], scripts: tuple[str, ...]) -> str:
    looks = [*(_SHARED / name for name in _STYLES), *(folder / name for name in styles)]
    code = [*(_SHARED / name for name in _SCRIPTS), *(folder / name for name in scripts)]
    style, script = ("\n".join(path.read_text("utf-8") for path in paths) for paths in (looks, code))
    body = (folder / "body.html").read_text("utf-8")
    page = (_SHARED / "page.html").read_text("utf-8").replace("{title}", title).replace("{body}", body)
    return page.replace("{style}", style).replace("{script}", script)
