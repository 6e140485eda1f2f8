"""What the benchmarks' page is made of, and the GPU's profile on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import report
from benchmarks._gpu import SHAPES, random_model, used
from benchmarks.learner import on_gpu as learn_on_gpu
from benchmarks.score import on_gpu as score_on_gpu


def make_result(**changes: Any) -> dict[str, Any]:
    return {
        "name": "step",
        "ours": {"step_seconds": 1.25},
        "alternative": {"step_seconds": 1.0},
        "ratio": 0.8,
        "aim": 0.98,
        "met": False,
        "command": "python -m benchmarks.step",
        "machine": "a machine",
        "date": "2026-11-21T14:00:00+00:00",
    } | changes


def test_the_table_says_what_was_asked_found_and_how() -> None:
    text = report.table([make_result(), make_result(name="score-tiny", met=True, device="a GPU")])
    assert "`step`: What token credit costs" in text
    assert "| 1.25 step seconds | 1 step seconds | 0.8 | 0.98 | **missed** |" in text
    assert "| `step` | `python -m benchmarks.step` | a machine | 2026-11-21T14:00 |" in text
    assert "a machine, a GPU" in text


def test_a_headline_is_the_first_figure_or_that_of_most_workers() -> None:
    assert report.headline({"groups_per_second": 300.5, "bytes": 1}) == "300.5 groups per second"
    assert report.headline({"1": 2.0, "64": 120.0}) == "120 at 64"
    assert report.headline(None) == ""


def test_the_page_keeps_what_stands_around_the_table(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write(page, "new")
    assert page.read_text() == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"


def test_the_chart_has_a_row_for_each_result(tmp_path: Path) -> None:
    report.chart([make_result(), make_result(ratio=3.0)], tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        assert image.size == (report.WIDTH, report.TOP + 2 * report.ROW + 30)
        assert image.convert("RGB").getpixel((report.LEFT + 5, report.TOP + 10)) == (0xD5, 0x5E, 0x00)


def test_every_result_has_a_benchmark_with_a_question() -> None:
    assert all(report.question(result["name"]) for result in report.results(report.RESULTS))


@pytest.mark.parametrize("profile", [score_on_gpu, learn_on_gpu])
def test_the_gpu_profile_runs_on_the_cpu_at_a_tiny_size(profile: Any) -> None:
    found = profile("tiny")
    assert found["largest_difference"] < 1e-4
    assert found["ours"]["tokens_per_second"] > 0
    assert found["ours"]["mfu"] is None


def test_flops_are_those_of_the_matrix_products_and_of_attention() -> None:
    model, rows = random_model("tiny"), [[1, 2, 3] * 100]
    sizes, tokens = SHAPES["tiny"], 300
    weights = sum(p.numel() for name, p in model.named_parameters() if "proj" in name)
    width = sizes["num_attention_heads"] * sizes["head_dim"]
    seen = sizes["num_hidden_layers"] * tokens * (tokens + 1) / 2
    flops = 2 * weights * tokens + 4 * width * seen + 2 * sizes["hidden_size"] * 512 * tokens
    assert used(model, rows, 1e-9, tree=False)["teraflops_per_second"] == pytest.approx(flops / 1e3, rel=1e-3)
