"""Markup in a model's output, in run names and in every other text of a run is shown as text on every page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cepo.cli.evaluation.estimates import Estimate
from cepo.cli.evaluation.plot import Line, pass_at_k_svg
from cepo.cli.preflight.examples import ExamplePrompt
from cepo.cli.preflight.preflight import CheckFinding
from cepo.cli.preflight.report import html_page
from cepo.dashboard.folder import Watched
from cepo.dashboard.rest import application
from cepo.net.rest import guard
from cepo.net.settings import Settings
from cepo.run.folder import RunDir
from tests.browser.chromium import Browser, needs_chromium
from tests.helpers import serving
from tests.helpers.runs import make_failure, make_metrics, make_run, make_sample, make_status

pytestmark = needs_chromium

MARKUP = (
    "</script></title></style><script>window.owned = 1</script><img src=x onerror='window.owned = 1'>"
    '<a href="javascript:window.owned = 1">javascript:window.owned = 1</a><svg onload="window.owned = 1">&lt;{script}'
)
NAME = "<img src=x onerror=window.owned=1> javascript:window.owned=1"
"""Markup without a slash, as the name of a folder."""
INJECTED = "document.querySelectorAll('[src=x], [onerror], [onload], [href^=javascript], iframe, svg [onload]').length"


@contextmanager
def served(*runs: RunDir) -> Iterator[str]:
    app = application([Watched(run) for run in runs])
    guard(app, Settings())
    with serving.served(app) as url:
        yield f"{url}/"


def hostile(value: Any) -> Any:
    """A value with markup in place of every text."""
    match value:
        case str():
            return MARKUP
        case list():
            return [hostile(each) for each in value]
        case dict():
            return {key: hostile(each) for key, each in value.items()}
    return value


def hostile_run(path: Path) -> RunDir:
    """A run whose texts are all markup: names, tokens, responses, verdicts, failures and the keys of metrics."""
    run = make_run(path, 0)
    model, name = json.dumps(MARKUP), json.dumps(NAME)
    run.config.write_text(f"name = {name}\n[model]\npath = {model}\n[algorithm]\nname = {model}\n")
    for step in range(3):
        run.append({**make_metrics(step), MARKUP: 0.5, f"loss/{NAME}": 1.0})
    for step in (1, 2):
        samples = [make_sample("50", "correct"), make_sample("60", "wrong")]
        if step == 2:
            samples = [{**hostile(sample), "outcome": sample["outcome"]} for sample in samples]
        rows = [{**sample, "text": MARKUP, "extracted": MARKUP, "reason": MARKUP} for sample in samples]
        group = {"prompt": [{"role": "user", "content": MARKUP}], "images": [], "answer": MARKUP, "samples": rows}
        run.rollouts_of(step).write_text(json.dumps({"group": MARKUP, **group}) + "\n")
    run.append_failures([make_failure(1, error=MARKUP, stage=MARKUP, group=MARKUP)])
    run.write_status({**make_status(run, MARKUP, 3), "run": MARKUP})
    return run


@pytest.fixture
def tab(browser: Browser) -> Iterator[Browser]:
    browser.size(1280, 900)
    yield browser
    browser.call("Page.navigate", url="about:blank")


def assert_harmless(tab: Browser, scripts: int) -> None:
    assert tab.run("window.owned") is None
    assert tab.run(INJECTED) == 0
    assert tab.run("document.scripts.length") == scripts
    assert tab.run("document.title") != ""


def test_the_dashboard_shows_markup_as_text(tab: Browser, tmp_path: Path) -> None:
    run, other = hostile_run(tmp_path / NAME), hostile_run(tmp_path / "other" / NAME)
    with served(run, other) as url:
        tab.open(url)
        tab.until("document.querySelectorAll('#groups .token').length > 0")
        for text in (MARKUP, "javascript:window.owned"):
            assert text in tab.run("document.body.innerText")
        assert NAME in tab.run("document.body.innerText")
        tab.hover("#groups .token")
        assert MARKUP in tab.run("document.getElementById('tip').innerText")
        assert_harmless(tab, scripts=2)
        tab.press("ArrowLeft")
        tab.until("loaded.step === 1")
        assert MARKUP in tab.run("document.getElementById('groups').innerText")
        run.append_failures([make_failure(2, error=MARKUP)])
        tab.until("document.getElementById('failures-title').textContent === 'Failures (2)'")
        tab.run(f"addFile({json.dumps(NAME)}, {json.dumps(json.dumps({'step': 0, MARKUP: 1.0, 'reward/mean': 0.25}))})")
        tab.until("document.getElementById('compared').innerText.includes('0.250')")
        assert_harmless(tab, scripts=2)


def test_the_files_that_commands_write_show_markup_as_text(tab: Browser, tmp_path: Path) -> None:
    page, plot = tmp_path / "check.html", tmp_path / "pass_at_k.svg"
    prompts = [ExamplePrompt("r+", f"before {MARKUP} after", MARKUP, 7)]
    page.write_text(html_page(MARKUP, [CheckFinding(MARKUP, "note", MARKUP)], prompts, []))
    tab.open(page.as_uri())
    assert MARKUP in tab.run("document.body.innerText")
    assert_harmless(tab, scripts=0)
    lines = [Line(MARKUP, {1: Estimate(0.5, 0.4, 0.6), 2: Estimate(0.6, 0.5, 0.7)})]
    plot.write_text(pass_at_k_svg(MARKUP, MARKUP, lines))
    tab.open(plot.as_uri())
    assert MARKUP in tab.run("document.querySelector('text').textContent")
    assert tab.run("[window.owned, document.querySelectorAll('script, a, image, [onload]').length]") == [None, 0]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 360)])
def test_the_check_page_fits_a_phone_in_light_and_dark(tab: Browser, tmp_path: Path, scheme: str, width: int) -> None:
    page = tmp_path / "check.html"
    findings = [
        CheckFinding("data", "ok", "data.train=" + "/a-long-folder" * 30),
        CheckFinding("disk", "note", "nearly full"),
    ]
    prompts = [ExamplePrompt("r+, the right answer as hint", "before 51 after", "51", 7)]
    page.write_text(html_page("cepo check run.toml", findings, prompts, []))
    tab.scheme(scheme)
    tab.size(width, 740, phone=width < 400)
    tab.open(page.as_uri())
    assert tab.run("document.documentElement.scrollWidth") == width
    ink, ground = (tab.run(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert (sum(map(int, ink[4:-1].split(", "))) < sum(map(int, ground[4:-1].split(", ")))) is (scheme == "light")
    assert tab.run("document.querySelector('dl .note').innerText") == "note"
    assert tab.run("document.querySelector('mark').innerText") == "51"
