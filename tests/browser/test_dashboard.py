"""The dashboard page in a real browser, on run folders that grow while the page is open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cepo.dashboard.folder import Watched
from cepo.dashboard.rest import application
from cepo.net.rest import guard
from cepo.net.settings import Settings
from cepo.prompts.images import ImageStore
from cepo.run.folder import RunDir
from cepo.run.metrics import METRICS
from cepo.run.rollouts import Rollouts
from tests.browser.chromium import Browser, needs_chromium
from tests.helpers import serving
from tests.helpers.runs import make_failure, make_metrics, make_run, make_status, write_groups
from tests.helpers.vision import BLANK

pytestmark = needs_chromium

SELECTED = "document.getElementById('step-value').value"
DRAWN = "cards[0].chart.data[1].filter(value => value !== null).length"
INKED = """(chart => {
    const {width, height} = chart.ctx.canvas, {left, top, width: wide, height: high} = chart.bbox;
    const [red, green, blue] = chart.series[1].stroke().match(/[0-9a-f]{2}/g).map(part => parseInt(part, 16));
    const pixels = chart.ctx.getImageData(left, top, wide, high).data;
    return [...Array(Math.floor(wide)).keys()].filter(x => [...Array(Math.floor(high)).keys()].some(y => {
        const at = 4 * (y * Math.floor(wide) + x);
        return pixels[at] === red && pixels[at + 1] === green && pixels[at + 2] === blue;
    })).length / wide;
})(cards[0].chart)"""
"""Share of the pixel columns of the first chart in which its first curve has its full colour."""
COLOURED = "new Set(cards[0].chart.series.slice(1).map(series => series.stroke())).size"


@contextmanager
def served(*runs: RunDir, port: int = 0, token: str = "") -> Iterator[str]:
    """Serves a dashboard of these runs; yields its address."""
    app = application([Watched(run) for run in runs])
    guard(app, Settings(token=token))
    with serving.served(app, port) as url:
        yield f"{url}/"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A running run in its seventh step."""
    made = make_run(tmp_path / "sums", 6)
    for step in (4, 5):
        write_groups(made, step)
    made.append_failures([make_failure(2), make_failure(3, sample=1, error="timeout: comparing took longer")])
    made.write_status(make_status(made, "rollout", 6))
    return made


@pytest.fixture
def tab(browser: Browser) -> Iterator[Browser]:
    browser.size(1280, 900)
    browser.scheme("light")
    yield browser
    browser.call("Page.navigate", url="about:blank")  # otherwise the page would keep polling


def opened(tab: Browser, url: str) -> None:
    tab.open(url)
    tab.until(f"!isNaN({SELECTED}) && loaded.step !== null && (opened.group || opened.error)")


def text(tab: Browser, selector: str) -> str:
    return tab.run(f"document.querySelector({json.dumps(selector)}).innerText")


def speak(run: RunDir, phase: str, step: int, **changes: Any) -> None:
    run.write_status(make_status(run, phase, step, **changes))


def test_a_live_run_is_drawn_as_it_goes_and_survives_a_restart(tab: Browser, run: RunDir, free_port: Any) -> None:
    port = free_port()
    with served(run, port=port) as url:
        opened(tab, url)
        assert text(tab, "#phase") == "Sampling, verifying, teaching"
        assert "step 6 · 6 of 20 steps done" in text(tab, "#left")
        assert tab.run(DRAWN) == 6
        assert tab.run(INKED) > 0.5
        speak(run, "train", 6)
        tab.until("document.getElementById('phase').textContent === 'Training'")
        run.append(make_metrics(6))
        tab.until(f"{SELECTED} === '6' && {DRAWN} === 7")
        tab.run("document.getElementById('back').click()")
        run.append(make_metrics(7))
        tab.until(f"{DRAWN} === 8")
        assert tab.run(SELECTED) == "5"  # the page stays at a step that the user has selected
        run.append_failures([make_failure(7)])
        tab.until("document.getElementById('failures-title').textContent === 'Failures (3)'")
    tab.until("document.getElementById('link').textContent === 'no answer; retrying'")
    run.truncate(5)
    run.append(make_metrics(5))
    with served(run, port=port):
        tab.until(f"{DRAWN} === 6")
        run.append(make_metrics(6))
        tab.until(f"{DRAWN} === 7")
        run.truncate(2)
        tab.until(f"{DRAWN} === 2")
        speak(run, "done", 6)
        tab.until("document.getElementById('phase').textContent === 'Done'")


def test_a_step_is_chosen_by_keys_pointer_and_slider(tab: Browser, run: RunDir) -> None:
    with served(run) as url:
        opened(tab, url)
        tab.press("ArrowLeft", "ArrowLeft")
        assert tab.run(SELECTED) == "3"
        assert tab.run("document.getElementById('follow').ariaPressed") == "false"
        tab.run("document.getElementById('step').focus()")
        tab.press("ArrowLeft")
        assert tab.run(SELECTED) == "2"
        tab.press("End")
        assert tab.run(SELECTED) == "5"
        tab.click(".bar:nth-child(2)")
        assert tab.run(SELECTED) == "1"
        assert text(tab, ".curve .keys b") == f"{make_metrics(1)['reward/mean']:.3f}"
        tab.click(".plot")
        assert tab.run(SELECTED) in "23"
        tab.click("#follow")
        tab.until(f"{SELECTED} === '5'")
        assert tab.failures() == []


def test_curves_show_the_values_under_the_pointer(tab: Browser, run: RunDir) -> None:
    with served(run) as url:
        opened(tab, url)
        for share, step in ((0.01, 0), (0.61, 3)):
            tab.drag(".plot .u-over", share, share)
            tab.until(f"view.hover === {step}")
            value = f"{make_metrics(step)['reward/mean']:.3f}"
            tab.until(f"document.querySelector('.curve .keys b').textContent === '{value}'")
            places = "cards.map(card => [card.chart.cursor.left, card.chart.valToPos(view.hover, 'x')])"
            assert all(left == pytest.approx(place, abs=1) for left, place in tab.run(places))
        tab.hover("h1")
        tab.until("view.hover === null")
        assert tab.run("Math.abs(cards[0].chart.cursor.left - cards[0].chart.valToPos(view.step, 'x'))") < 1


def test_a_label_explains_its_metric(tab: Browser, run: RunDir) -> None:
    with served(run) as url:
        opened(tab, url)
        titles = tab.run("[...document.querySelectorAll('.keys > span')].map(each => each.title)")
    assert METRICS["Token credit (RLSD and CEPO; arXiv:2605.19436, Figures 4 and 5)"]["credit/lambda"] in titles


def test_dragging_zooms_every_curve_and_a_button_shows_all_steps(tab: Browser, run: RunDir) -> None:
    ranges = "[...new Set(cards.map(({chart: {scales: {x}}}) => `${x.min.toFixed(6)} ${x.max.toFixed(6)}`))]"
    with served(run) as url:
        opened(tab, url)
        assert tab.run(ranges) == ["0.000000 5.000000"]
        assert tab.run("document.getElementById('unzoom').hidden") is True
        tab.drag(".plot .u-over", 0.2, 0.8)
        tab.until("!document.getElementById('unzoom').hidden")
        ((low, high),) = [map(float, each.split()) for each in tab.run(ranges)]
        assert low == pytest.approx(1, abs=0.2)
        assert high == pytest.approx(4, abs=0.2)
        assert tab.run(SELECTED) == "5"  # the drag is no click
        run.append(make_metrics(6))
        tab.until(f"{DRAWN} === 7")
        assert tab.run(f"{ranges}.length") == 1
        assert float(tab.run(ranges)[0].split()[1]) == high
        tab.click("#unzoom")
        assert tab.run(ranges) == ["0.000000 6.000000"]
        assert tab.failures() == []


def test_a_curve_has_a_logarithmic_axis(tab: Browser, run: RunDir) -> None:
    with served(run) as url:
        opened(tab, url)
        tab.click(".curve .log")
        assert tab.run("cards.map(card => card.chart.scales.y.distr)") == [3] + [1] * (tab.run("cards.length") - 1)
        assert tab.run("document.querySelector('.curve .log').ariaPressed") == "true"
        assert tab.run("cards[0].chart.scales.y.min") > 0
        tab.click(".curve:nth-child(5) .log")  # one of its curves is negative
        assert tab.run("cards[4].chart.data.slice(1).map(each => each.some(value => value !== null))") == [True, False]
        tab.click(".curve .log")
        assert tab.run("[cards[0].chart.scales.y.distr, cards[0].chart.scales.y.min]") == [1, 0]
        assert tab.failures() == []


def test_the_groups_of_a_step_show_verdicts_and_token_credit(tab: Browser, run: RunDir) -> None:
    with served(run) as url:
        opened(tab, url)
        tab.until("document.querySelectorAll('#groups .token').length === 15")
        assert text(tab, "#groups-title").lower() == "rollouts of step 5"
        assert "20 + 30 = ?" in text(tab, "#groups h3")
        assert "r⁻ 60" in text(tab, "#groups .chips")
        shades = tab.run("[...document.querySelectorAll('.token')].map(t => t.style.backgroundColor)")
        assert [at for at, shade in enumerate(shades) if "/ 0)" not in shade and "/ 0.000)" not in shade] == [12, 13]
        tab.hover('.token[data-at="12"]')
        for words in ("log P given r⁺", "log P given r⁻", "+2.000", "+1.875", "+25 %"):
            assert words in text(tab, "#tip")
        tab.run("document.querySelector('#groups [aria-label=Response] [role=radio]').focus()")
        tab.press("ArrowRight")
        assert "wrong, read as 60: differs from 50" in text(tab, "#groups")
        assert tab.run("document.activeElement.innerText").startswith("✗ Response 2")
        assert "pushed down 25 percent" in tab.run("document.querySelector('.token[data-at=\"12\"]').ariaLabel")
        tab.run("document.querySelector('.token').focus()")
        tab.press("ArrowRight")
        assert tab.run("document.activeElement.dataset.at") == "1"
        assert tab.run(SELECTED) == "5"
        tab.run("document.activeElement.blur()")
        tab.press("ArrowLeft", "ArrowLeft")
        tab.until("document.getElementById('groups').innerText.includes('telemetry.rollouts_per_step')")


def listed(tab: Browser) -> list[str]:
    """The places of the responses in the list, such as "train/5/0/1"."""
    return tab.run("[...document.querySelectorAll('#list [role=option]')].map(row => row.dataset.place)")


def select(tab: Browser, name: str, value: str) -> None:
    tab.run(
        f"(s => {{ s.value = {json.dumps(value)}; s.dispatchEvent(new Event('input', {{bubbles: true}})); }})"
        f"(document.querySelector('#find [name={name}]'))"
    )


def test_responses_of_every_step_are_searched_filtered_and_sorted(tab: Browser, run: RunDir) -> None:
    store = Rollouts(run.rollouts)
    store.write("held-out", 6, store.groups("train", 5, 0, 1))
    store.truncate(7)
    count = "document.getElementById('found-count').textContent === '{}'"
    with served(run) as url:
        opened(tab, url)
        assert listed(tab) == [f"train/5/{at}/{sample}" for at in (0, 1) for sample in (0, 1)]
        select(tab, "order", "wrong")
        tab.until("document.querySelector('#list').firstElementChild.dataset.place === 'train/5/0/1'")
        select(tab, "scope", "all")
        select(tab, "reason", "differs from 50")
        tab.until(count.format("5 responses"))
        select(tab, "source", "held-out")
        tab.until(count.format("1 response"))
        tab.until("document.getElementById('groups').innerText.includes('held out, v6, group 1')")
        select(tab, "source", "")
        select(tab, "reason", "")
        tab.type("#find [name=text]", "(step 4)")
        tab.until(count.format("4 responses"))
        assert text(tab, "#groups-title").lower() == "rollouts of all steps"
        tab.type("#find [name=text]", "no response has this")
        tab.until("document.getElementById('groups').innerText === 'No response fits.'")
        tab.type("#find [name=text]", "20 +")
        tab.type("#find [name=lowest]", "0.5")
        tab.until(count.format("5 responses"))
        assert tab.failures() == []


def test_the_address_names_a_token_and_leads_back_to_it(tab: Browser, run: RunDir) -> None:
    with served(run) as url:
        opened(tab, url)
        tab.run("document.querySelector('#list [role=option]:nth-child(4)').click()")
        tab.until("opened.at === 1 && opened.sample === 1 && opened.group")
        tab.click('.token[data-at="12"]')
        assert tab.run("location.hash") == "#train/5/1/1/12"
        assert tab.run("document.getElementById('permalink').hash") == "#train/5/1/1/12"
        tab.run("location.hash = '#train/4/0/1/13'")
        tab.until("document.activeElement.dataset.at === '13'")
        assert tab.run(SELECTED) == "4"
        assert tab.run("document.getElementById('follow').ariaPressed") == "false"
        tab.open("about:blank")
        opened(tab, f"{url}#train/5/1/1/12")
        tab.until("document.querySelector('.token.linked')?.dataset.at === '12'")
        tab.until("document.querySelector('#list [aria-selected=true]')?.dataset.place === 'train/5/1/1'")
        assert "log P given r⁻" in text(tab, "#tip")
        assert tab.failures() == []


def test_the_groups_of_a_step_appear_when_they_reach_the_disk(tab: Browser, run: RunDir) -> None:
    with served(run) as url:
        opened(tab, url)
        run.append(make_metrics(6))
        tab.until(f"{SELECTED} === '6' && document.getElementById('groups').innerText.includes('on disk')")
        write_groups(run, 6)
        tab.until("document.getElementById('groups').innerText.includes('(step 6)')")


def test_a_group_shows_the_images_of_its_problem(tab: Browser, run: RunDir) -> None:
    ImageStore(run.images).put(BLANK.data)
    write_groups(run, 5, images=[BLANK.ref.sha256])
    with served(run, token="right") as url:
        tab.open(url)
        tab.until("!document.getElementById('token-field').hidden")
        tab.type("[name=token]", "right")
        tab.run("document.getElementById('token-field').requestSubmit()")
        tab.until("document.querySelector('#groups .pictures img')?.naturalWidth > 0")
        width, height = tab.run("(i => [i.naturalWidth, i.naturalHeight])(document.querySelector('#groups img'))")
        assert (width, height) == (BLANK.ref.width, BLANK.ref.height)
        tab.press("ArrowLeft")
        tab.until("document.getElementById('groups').innerText.includes('step 4')")
        assert tab.run("document.querySelector('#groups .pictures').hidden") is True


def test_other_runs_are_drawn_beside_it(tab: Browser, run: RunDir, tmp_path: Path) -> None:
    with served(run, make_run(tmp_path / "other", 9)) as url:
        opened(tab, url)
        tab.until(f"{COLOURED} === 2 && document.querySelectorAll('#legend .swatch').length === 2")
        assert text(tab, "#legend").split() == ["sums", "other"]
        first = tab.run("cards[1].chart.series.slice(1).map(each => [each.stroke(), each.dash?.length ?? 0])")
        assert [dash for _, dash in first] == [0, 2, 0, 2]  # train and held out of each run
        assert first[0][0] == first[1][0] != first[2][0] == first[3][0]
        assert tab.run("[...document.querySelectorAll('#compared th')].map(h => h.textContent)") == [
            "up to step 5",
            "sums",
            "other",
        ]
        tab.click("#runs input")
        tab.until(f"{COLOURED} === 1 && document.querySelectorAll('#legend .swatch').length === 0")
        tab.run("""addFile('mine.jsonl', '{"step": 5, "reward/mean": 0.25, "loss/policy": NaN}\\n{"step": 6, "rew')""")
        tab.until("document.getElementById('compared').innerText.includes('0.250')")
        assert tab.failures() == []


def test_curves_are_smoothed_and_drawn_over_tokens_and_time(tab: Browser, run: RunDir) -> None:
    choose = "(s => {{ s.value = '{1}'; s.dispatchEvent(new Event('{2}')); }})(document.getElementById('{0}'))"
    seconds = [make_metrics(step)["time/step_seconds"] for step in range(6)]
    with served(run) as url:
        opened(tab, url)
        raw = tab.run("cards[0].chart.data[1]")
        tab.run(choose.format("smoothing", 0.5, "input"))
        tab.until("view.smoothing === 0.5 && cards[0].chart.data[1][1] !== " + str(raw[1]))
        smooth = tab.run("cards[0].chart.data[1]")
        assert smooth[:2] == pytest.approx([raw[0], (0.5 * raw[0] + raw[1]) / 1.5])
        tab.run(choose.format("axis", "time", "change"))
        tab.until("cards[0].chart.data[0][0] > 1")
        assert tab.run("cards[0].chart.data[0]") == pytest.approx([sum(seconds[: n + 1]) for n in range(6)])
        tab.drag(".plot .u-over", 0.99, 0.99)
        tab.until("view.hover === 5")
        tab.drag(".plot .u-over", 0.2, 0.8)
        tab.until("!document.getElementById('unzoom').hidden")
        tab.run(choose.format("axis", "tokens", "change"))
        tab.until("document.getElementById('unzoom').hidden")
        tab.run(choose.format("axis", "step", "change"))
        tab.until("cards[0].chart.data[0][5] === 5")
        assert tab.failures() == []


def test_failures_name_their_step_and_reason(tab: Browser, run: RunDir) -> None:
    with served(run) as url:
        opened(tab, url)
        rows = tab.run("[...document.querySelectorAll('#failures tbody tr')].map(r => r.innerText)")
        assert rows[0].split("\t") == ["3", "3/0 response 2", "verify", "timeout: comparing took longer"]
        tab.click("#failures button")
        assert tab.run(SELECTED) == "3"


def test_the_token_is_asked_for(tab: Browser, run: RunDir) -> None:
    with served(run, token="right") as url:
        tab.open(url)
        tab.until("!document.getElementById('token-field').hidden")
        assert "sums" not in tab.run("document.body.innerText")
        for token in ("wrong", "right"):
            tab.type("[name=token]", token)
            tab.run("document.getElementById('token-field').requestSubmit()")
            if token == "wrong":
                tab.until("document.getElementById('error').textContent.includes('wrong or missing token')")
        tab.until(f"document.getElementById('token-field').hidden && {SELECTED} === '5'")
        assert text(tab, "h1") == "sums"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_thousand_steps_fit_a_phone_in_light_and_dark(tab: Browser, tmp_path: Path, scheme: str) -> None:
    run = make_run(tmp_path / "long", 0)
    run.metrics.write_text("".join(json.dumps(make_metrics(step)) + "\n" for step in range(1500)))
    tab.scheme(scheme)
    tab.size(360, 740, phone=True)
    with served(run) as url:
        opened(tab, url)
        assert tab.run(SELECTED) == "1499"
        assert tab.run("document.documentElement.scrollWidth") == 360
        assert tab.run(DRAWN) == 1500
        assert tab.run(INKED) > 0.9
        drawing = "(t => { for (const card of cards) card.draw(); return performance.now() - t; })(performance.now())"
        assert min(tab.run(drawing) for _ in range(5)) < 1000  # milliseconds, on an idle machine
        assert tab.run("document.body.scrollHeight - (changed(), document.body.scrollHeight)") == 0
        tab.click(".curve summary")
        tab.until("document.querySelectorAll('.curve table tbody tr').length === 1500")
        assert tab.run("[...document.querySelectorAll('.plot')].every(p => p.ariaLabel.includes('step'))")
        assert tab.run(
            "[...document.querySelectorAll('button, select, input')]"
            ".every(e => e.labels?.length || e.ariaLabel || e.textContent)"
        )
        ink, card = (
            tab.run(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}')")
            for name in ("ink", "card")
        )
        assert (ink < card) is (scheme == "light")
