"""The HTML file of `cepo compare` in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cepo.cli.compare.page import page as comparison
from cepo.cli.compare.runs import read_runs
from tests.browser.chromium import Browser, needs_chromium
from tests.helpers.compared import compared_runs

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    written = folder / "comparison.html"
    written.write_text(comparison(read_runs([run.path for run in compared_runs(folder)])), "utf-8")
    return written


@pytest.fixture
def tab(browser: Browser, file: Path) -> Iterator[Browser]:
    browser.size(1280, 900)
    browser.scheme("light")
    browser.open(file.as_uri())
    yield browser
    assert browser.failures() == []
    assert [url for url in browser.requests() if not url.startswith("file:")] == []


def text(tab: Browser, selector: str) -> str:
    return tab.run(f"document.querySelector('{selector}').innerText")


def test_the_file_shows_settings_accuracy_curves_credit_and_flips(tab: Browser) -> None:
    assert 'algorithm.name\t"grpo"\t"cepo"' in text(tab, "#settings")
    assert "+2.5 points [-5.0, +10.0]" in text(tab, "#accuracy")
    assert tab.run("curves.length") == 5
    assert tab.run("curves[0].chart.series.slice(1).map(s => s.label)") == ["grpo", "cepo"]
    strokes = tab.run("curves[0].chart.series.slice(1).map(s => s.stroke())")
    assert strokes == ["#0072b2", "#d55e00"]
    assert "2 solved, 1 lost".upper() in text(tab, "#flips").upper()
    assert tab.run("document.querySelectorAll('#pairs .sides > div').length") == 2
    painted = "[...document.querySelectorAll('#pairs .token')].filter(t => !t.style.backgroundColor.endsWith(' 0)'))"
    assert tab.run(f"{painted}.length") > 0
    tab.hover("#pairs .token")
    assert "of the median token" in text(tab, "#tip")


def test_the_x_axis_smoothing_zoom_and_logarithm_change_the_curves(tab: Browser) -> None:
    values = tab.run("curves[0].chart.data[1]")
    tab.run("(s => { s.value = 'tokens'; s.onchange(); })(document.getElementById('axis'))")
    assert tab.run("curves[0].chart.data[0]") == [1000 * (step + 1) for step in range(6)]
    tab.run("(s => { s.value = 'hours'; s.onchange(); })(document.getElementById('axis'))")
    assert 0 < tab.run("curves[0].chart.data[0].at(-1)") < 0.01
    tab.run("(s => { s.value = 'step'; s.onchange(); })(document.getElementById('axis'))")
    tab.run("(s => { s.value = '0.5'; s.oninput(); })(document.getElementById('smooth'))")
    smoothed = tab.run("curves[0].chart.data[1]")
    assert smoothed[0] == values[0]
    assert smoothed[1] == pytest.approx((values[0] + values[1]) / 2)
    tab.click("#log")
    assert tab.run("curves[0].chart.scales.y.distr") == 3
    tab.drag(".curve .u-over", 0.3, 0.7)
    low, high = tab.run("[curves[1].chart.scales.x.min, curves[1].chart.scales.x.max]")
    assert low == pytest.approx(1.5, abs=0.3)
    assert high == pytest.approx(3.5, abs=0.3)
    tab.click("#unzoom")
    assert tab.run("[curves[1].chart.scales.x.min, curves[1].chart.scales.x.max]") == [0, 5]


def test_any_metric_can_be_drawn_and_the_cursor_tells_its_values(tab: Browser) -> None:
    tab.run("(s => { s.value = 'grad_norm'; s.onchange(); })(document.querySelector('.curve select'))")
    assert tab.run("curves.at(-1).key") == "grad_norm"
    tab.hover(".curve .u-over")
    assert text(tab, ".curve .keys").count("\n") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_in_one_column(tab: Browser, scheme: str) -> None:
    tab.scheme(scheme)
    tab.size(390, 800, phone=True)
    tab.until("curves[0].chart.width < 390")
    assert tab.run("document.documentElement.scrollWidth") == 390
    first = "#0072b2" if scheme == "light" else "#56b4e9"
    tab.until(f"curves[0].chart.series[1].stroke() === '{first}'")
