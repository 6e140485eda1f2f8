"""The replay of held-out problems, on the dashboard and as one HTML file, scored by a real teacher."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import cepo.cli.credit
from cepo.cli import main
from cepo.credit import CreditReply, CreditRequest
from cepo.dashboard.folder import Watched
from cepo.dashboard.rest import application
from cepo.net.rest import guard
from cepo.net.settings import Settings
from cepo.prompts.spans import pieces
from cepo.run.folder import RunDir
from cepo.run.lines import Row
from cepo.run.replay import MAX_VERSIONS, replay, replay_versions
from cepo.run.rollouts import Rollouts
from services.teacher.credit import TokenCredit
from tests.browser.chromium import Browser, needs_chromium
from tests.helpers import serving
from tests.helpers.runs import make_metrics, make_run, make_status
from tests.helpers.scorers import RENDERER

pytestmark = needs_chromium

QUESTION = "12 + 30 - 11 = ?"
SUMS = {
    0: ("12+30=42\n42-11=29\n\\boxed{29}", "wrong"),
    5: ("12+30=42\n42-11=29\n\\boxed{29}", "wrong"),
    20: ("12+30=42\n42-11=31\n\\boxed{31}", "correct"),
}
"""The response of each version, and its outcome."""
COLOURED = (
    "[...document.querySelectorAll('#replay .token')].filter(t => !/ 0(\\.0+)?\\)$/.test(t.style.backgroundColor))"
)


def held_out(index: int, text: str, outcome: str) -> Row:
    ids = RENDERER.response_ids(text)
    told = {"extracted": "", "reward": float(outcome == "correct"), "reason": f"told {outcome}"}
    tokens = {"token_ids": ids, "tokens": pieces(RENDERER.tokenizer, ids), "advantage": [], "evidence": []}
    prompt = [{"role": "user", "content": QUESTION}]
    sample = {"text": text, "outcome": outcome, **told, **tokens}
    return {"group": f"run/eval-0/{index}", "prompt": prompt, "images": [], "answer": "31", "samples": [sample]}


@pytest.fixture
def run(tmp_path: Path, credit: TokenCredit, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run with three evaluations, scored by `cepo replay` with the teacher of this module."""
    made = make_run(tmp_path / "sums", 2)
    for version, (text, outcome) in SUMS.items():
        right = held_out(0, SUMS[20][0], "correct")
        Rollouts(made.rollouts).write("held-out", version, [right, held_out(7, text, outcome)])
    made.write_status(make_status(made, "done", 2))

    async def scored(requests: list[CreditRequest], *_: Any) -> AsyncIterator[CreditReply]:
        for request in requests:
            yield await credit(request)

    monkeypatch.setattr(cepo.cli.credit, "scored", scored)
    assert main(["replay", str(made.path), "--html", str(tmp_path / "replay.html")]) == 0
    return made


def chosen(tab: Browser) -> str:
    return tab.run("document.querySelector('#replay [role=status]').innerText")


def look(tab: Browser) -> None:
    """Moves through the versions of the problem that the policy learned, which comes first."""
    assert QUESTION in tab.run("document.querySelector('#replay h3').innerText")
    assert tab.run("[...document.querySelectorAll('#replay .marks button')].map(b => b.innerText.trim())") == [
        "✗\nv0",
        "✗\nv5",
        "✓\nv20",
    ]
    tab.run("toVersion(0)")
    assert chosen(tab).startswith("v0: wrong, told wrong; A -")
    red = tab.run(f"{COLOURED}.map(t => t.textContent).join('')")
    assert "9" in red
    tab.run("document.querySelector('#replay input[type=range]').focus()")
    tab.press("End")
    assert chosen(tab).startswith("v20: correct, told correct; A +")
    assert "31" in tab.run("document.querySelector('#replay .tokens').innerText")
    assert "1" in tab.run(f"{COLOURED}.map(t => t.textContent).join('')")
    tab.hover("#replay .tokens .token")
    assert "relative to an equal share" in tab.run("document.getElementById('tip').innerText")
    tab.press("Escape")
    tab.click("#replay .marks button:nth-child(2)")
    assert chosen(tab).startswith("v5: wrong")
    tab.click("#replay .pick button:last-child")
    assert "A is 0" in tab.run("document.getElementById('replay').innerText")
    assert tab.run("document.documentElement.scrollWidth") == tab.run("innerWidth")
    assert tab.failures() == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_a_slider_shows_a_problem_at_every_version(browser: Browser, run: RunDir, scheme: str, width: int) -> None:
    browser.size(width, 800, phone=width < 400)
    browser.scheme(scheme)
    browser.open((run.path.parent / "replay.html").as_uri())
    assert browser.run("document.title") == "Replay of sums"
    look(browser)
    assert [url for url in browser.requests() if not url.startswith("file:")] == []
    browser.run("[toProblem(0), toVersion(2), document.querySelector('#replay .time button').click()]")
    browser.until("document.querySelector('#replay [role=status]').innerText.startsWith('v5')")


def test_the_dashboard_has_the_replay_and_says_how_to_score_new_responses(browser: Browser, run: RunDir) -> None:
    browser.size(1280, 900)
    browser.scheme("light")
    app = application([Watched(run)])
    guard(app, Settings())
    with serving.served(app) as url:
        browser.open(f"{url}/")
        browser.until("document.querySelectorAll('#replay .token').length > 0")
        look(browser)
        Rollouts(run.rollouts).write("held-out", 20, [held_out(7, "no idea", "unparsed")])
        problems = {problem["name"]: problem for problem in replay(run.path)["problems"]}
        assert ["credit" in response for response in problems["7"]["responses"]] == [True, True, False]  # another text
        (run.path / "replay.json").unlink()
        browser.open(f"{url}/")
        browser.until("document.querySelectorAll('#replay .token').length > 0")
        assert "cepo replay RUN_DIR scores" in browser.run("document.getElementById('replay').innerText")
        assert browser.run(f"{COLOURED}.length") == 0
        browser.call("Page.navigate", url="about:blank")


def test_a_run_without_evaluations_has_no_replay_and_one_of_many_is_thinned(tmp_path: Path, capsys: Any) -> None:
    run = make_run(tmp_path / "run", 1)
    run.append(make_metrics(1))
    assert main(["replay", str(run.path)]) == 2
    assert "a replay needs data.eval" in capsys.readouterr().err
    assert replay(run.path) == {"method": "", "versions": [], "problems": []}
    store = Rollouts(run.rollouts)
    for version in range(100):
        store.write("held-out", version, [])
    versions = replay_versions(store)
    assert (len(versions), versions[0], versions[-1]) == (MAX_VERSIONS, 0, 99)
