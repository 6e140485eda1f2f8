"""The dashboard of a run at work, held open in a real browser while things happen to the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.browser.chromium import Browser, executable

POINTS = "document.querySelector('.plot path.line').getAttribute('d').split('L').length"
SECONDS = 240.0


@dataclass
class Seen:
    """What the page showed; nothing where there is no browser."""

    begun: int = 0
    """Steps that were drawn when it was opened,"""
    ended: int = 0
    """and at the end."""
    tip: str = ""
    """The numbers of the last token of a response, from the group of a step."""
    loads: int = 0
    """How often the page itself was asked for."""
    failures: tuple[str, ...] = ()


@contextmanager
def followed(run_dir: Path, profile: Path, steps: int) -> Iterator[Seen]:
    """Opens the page and a token of a group; after what happens then, waits until all steps are drawn."""
    seen = Seen()
    if executable() is None:
        yield seen
        return
    browser = Browser(profile)
    try:
        address = json.loads((run_dir / "services.json").read_text())["http"]["trainer"] + "/"
        browser.open(address)
        browser.until("document.querySelectorAll('#groups .token').length > 0")
        browser.run("[...document.querySelectorAll('#groups .token')].at(-1).focus()")
        seen.tip = browser.run("document.getElementById('tip').innerText")
        seen.begun = browser.run(POINTS)
        yield seen
        browser.until(f"{POINTS} === {steps}", SECONDS)
        seen.ended = browser.run(POINTS)
        seen.loads = browser.requests().count(address)
        seen.failures = tuple(browser.failures())
    finally:
        browser.close()
