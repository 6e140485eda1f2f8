"""Keeps the dashboard of a running run open in a real browser while the test disturbs the run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.browser.chromium import Browser, executable

POINTS = "cards[0].chart.data[1].filter(value => value !== null).length"
"""Number of steps that the first chart draws."""
SECONDS = 240.0


@dataclass
class Seen:
    """What the page showed. All fields stay at their defaults if no browser is installed."""

    begun: int = 0
    """Number of steps drawn when the page was opened."""
    ended: int = 0
    """Number of steps drawn at the end."""
    tip: str = ""
    """The tooltip of the last token of a response."""
    loads: int = 0
    """How often the browser requested the page itself."""
    failures: tuple[str, ...] = ()


@contextmanager
def followed(run_dir: Path, profile: Path, steps: int) -> Iterator[Seen]:
    """Opens the page and focuses a token of a group. When the block ends, waits until `steps` steps are drawn."""
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
