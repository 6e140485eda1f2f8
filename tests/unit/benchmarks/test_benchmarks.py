"""The page of the benchmarks, and the GPU profiles on a CPU."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from benchmarks import _gpu, _picture, _plain, _processes, heat_map, report
from benchmarks._report import RESULTS
from benchmarks._shapes import Group, case
from benchmarks._stack import tiny
from benchmarks.learner import on_gpu as learn_on_gpu
from benchmarks.score import on_gpu as score_on_gpu
from benchmarks.train import task
from benchmarks.vision import on_gpu as vision_on_gpu
from cepo.credit import CreditRequest
from cepo.model.forward import response_logps
from cepo.prompts.renderer import Renderer
from tests.helpers.credit import make_credit, toy_grade


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
    assert "`step`: The cost of token credit" in text
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


def test_the_chart_has_a_row_for_each_comparison_with_its_figures_in_units(tmp_path: Path) -> None:
    _picture.draw(
        [make_result(name="step"), make_result(name="vision"), make_result(name="bus")], tmp_path / "chart.png"
    )
    with Image.open(tmp_path / "chart.png") as image:
        assert image.size == (_picture.WIDTH, _picture.TOP + 2 * _picture.ROW + _picture.BOTTOM)
        pixels = np.asarray(image.convert("RGB"), int)
    blue, grey = (pixels[_picture.TOP + y, _picture.LEFT + 20] for y in (34, 59))
    assert blue[2] > blue[0] + 100
    assert max(grey) - min(grey) < 30
    step = next(each for each in _picture.COMPARISONS if each.name == "step")
    ours, theirs = (_picture.bar(step, make_result(), side) for side in ("ours", "alternative"))
    assert _picture.sentence(step, ours, theirs) == "The price of token credit: a step takes 1.25 s, with GRPO 1.00 s"


def test_the_heat_map_has_a_panel_for_each_method_and_lines_for_the_response(tmp_path: Path) -> None:
    request = CreditRequest.model_validate_json(heat_map.REQUEST.read_text())
    panels = heat_map.panels(asyncio.run(make_credit(grader=toy_grade)(request)))
    assert [name for name, _ in panels] == ["GRPO", "RLSD", "CEPO"]
    assert set(heat_map.shares(panels[0][1])) == {0.0}
    assert max(heat_map.shares(panels[2][1])) <= 0.25 + 1e-9
    for name, look in heat_map.LOOKS.items():
        heat_map.draw(["asked", "told"], panels, look, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.size == (
                2 * (2 * heat_map.LEFT + 3 * heat_map.PANEL),
                2 * (heat_map.TOP + 6 * heat_map.LINE + 26),
            )


def test_the_interval_of_a_share_is_that_of_wilson() -> None:
    assert _picture.wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert _picture.wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_every_comparison_of_the_chart_has_a_result() -> None:
    results = {result["name"]: result for result in report.results(RESULTS)}
    for comparison in _picture.COMPARISONS:
        bars = [_picture.bar(comparison, results[comparison.name], side) for side in ("ours", "alternative")]
        assert all(0 < each.low <= each.value <= each.high for each in bars)


def test_every_result_has_a_benchmark_with_a_question() -> None:
    assert all(report.question(result["name"]) for result in report.results(RESULTS))


@pytest.mark.parametrize("profile", [score_on_gpu, learn_on_gpu])
def test_the_gpu_profile_runs_on_the_cpu_at_a_tiny_size(profile: Any) -> None:
    result = profile("tiny")
    assert result["largest_difference"] < 1e-4
    assert result["ours"]["tokens_per_second"] > 0
    assert result["ours"]["mfu"] is None


def test_the_gpu_profile_of_a_vision_language_model_starts_with_the_image() -> None:
    result = vision_on_gpu("tiny")
    assert result["image_tokens"] == 14 * 14
    assert result["largest_difference"] < 1e-5
    assert result["ours"]["seconds"] > 0


def expected_flops(tokens: int, seen: int, predicted: int) -> float:
    """FLOPs of the tiny shape.

    Args:
        tokens: tokens that pass through the layers.
        seen: pairs of a query and a key that it attends to.
        predicted: tokens for which logits are computed.
    """
    sizes = _gpu.SHAPES["tiny"]
    weights = sum(p.numel() for name, p in _gpu.random_model("tiny").named_parameters() if "proj" in name)
    width = sizes["num_attention_heads"] * sizes["head_dim"]
    attention = 4 * width * sizes["num_hidden_layers"] * seen
    return 2 * weights * tokens + attention + 2 * sizes["hidden_size"] * 512 * predicted


def test_flops_are_those_of_the_matrix_products_and_of_attention() -> None:
    group = Group({"plain": [1] * 100}, [[2] * 50, [3] * 50])
    config = _gpu.random_model("tiny").config
    padded = expected_flops(2 * 150, 2 * 150 * 151 // 2, 2 * 150)
    assert _gpu.flops(config, group, "plain", tree=False) == pytest.approx(padded)
    responses = 2 * sum(range(101, 150))  # the last token of a row is not processed
    tree = expected_flops(100 + 2 * 49, 100 * 101 // 2 + responses, 2 * 50)
    assert _gpu.flops(config, group, "plain", tree=True) == pytest.approx(tree)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run on the tiny shape."""
    return _gpu.overrides(tmp_path_factory.mktemp("shape"), "tiny")


def test_a_run_on_a_random_model_has_its_sizes_and_prompts_of_some_512_tokens(overrides: list[str]) -> None:
    config = tiny("cepo", *overrides)
    renderer = Renderer(config.model.path)
    rows = task(tiny("cepo", *overrides, "loop.steps=2"))["rows"]
    lengths = [
        len(renderer.tokenizer.apply_chat_template(row["prompt"], return_dict=True)["input_ids"]) for row in rows
    ]
    assert len(rows) == 2 * config.sampling.prompts
    assert all(500 < length < 530 for length in lengths)
    assert config.engine.max_lora_rank == config.lora.rank == 16


def test_a_tokenizer_grows_to_the_vocabulary_of_its_model_and_reads_as_before(tmp_path: Path) -> None:
    shipped = Renderer(tiny("cepo").model.path)
    shutil.copytree(tiny("cepo").model.path, tmp_path / "model")
    _gpu.fill_vocabulary(tmp_path / "model" / "tokenizer.json", 2000)
    grown = Renderer(str(tmp_path / "model"))
    assert len(grown.tokenizer) == 2000
    assert grown.canary_ids(16) == shipped.canary_ids(16)
    assert grown.text([600, 1999]) == "w600w1999"


def test_rates_of_a_step_are_tokens_over_the_seconds_of_each_part(overrides: list[str]) -> None:
    figures = {"response_tokens": 100.0, "step_seconds": 4.0, "rollout_seconds": 2.0, "train_seconds": 1.0}
    config = tiny("cepo", *overrides)
    tokens = 100 * config.sampling.prompts * config.sampling.samples
    result = _gpu.rates(config, figures)
    names = ("tokens_per_second", "generated_tokens_per_second", "trained_tokens_per_second")
    assert [result[name] for name in names] == [tokens / 4, tokens / 2, tokens]
    assert result["mfu"] is result["training_mfu"] is None


def test_the_plain_loop_learns_from_what_it_samples(overrides: list[str]) -> None:
    config = tiny("grpo", *overrides, "sampling.prompts=2", "sampling.samples=4", "sampling.max_tokens=16")
    said = SimpleNamespace(**task(tiny("grpo", *overrides, "loop.steps=1")) | {"max_tokens": 16, "samples": 4})
    model = _plain.load(said)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path, padding_side="left")
    learning = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in learning]
    optimizer = torch.optim.AdamW(learning, lr=1e-3)
    seconds, sampling, updating, length = _plain.step(model, optimizer, tokenizer, said, said.rows[:2])
    assert seconds > sampling + updating > 0
    assert 0 < length <= 16
    assert any(not torch.equal(a, b) for a, b in zip(before, learning, strict=True))


def test_the_plain_loops_log_probs_are_those_of_unpadded_rows(overrides: list[str]) -> None:
    model = _gpu.random_model("tiny")
    prompts, response = [[7, 8, 9, 10], [11, 12]], [20, 21, 22]
    ids_BS = torch.tensor([[*prompts[0], *response], [0, 0, *prompts[1], *response]])
    mask_BS = torch.tensor([[1] * 7, [0, 0] + [1] * 5])
    logp_BT = _plain.logps(model, ids_BS, mask_BS, len(response))
    assert torch.allclose(logp_BT, response_logps(model, prompts, [response] * 2, 1.0), atol=1e-5)


def test_a_case_has_both_ratios_and_ends_where_results_differ() -> None:
    works = {"ours": lambda: torch.ones(2**22).sum(), "alternative": lambda: torch.ones(2**25).sum() / 8}
    result = case(works, rounds=3, tolerance=0.0)
    assert result["largest_difference"] == 0.0
    assert result["memory_ratio"] == pytest.approx(1 / 8, abs=0.1)
    with pytest.raises(SystemExit, match="ours and alternative differ by 1"):
        case(works | {"ours": lambda: torch.ones(2**22).sum() + 1}, rounds=1, tolerance=0.5)


def test_memory_of_a_gpu_is_summed_by_process() -> None:
    said = "12, 1024\n12, 512\n34, [N/A]\n56, 2\n"
    assert _processes.read(said) == {12: 1536 * 2**20, 56: 2 * 2**20}


def test_memory_is_that_of_every_process_of_a_session() -> None:
    child = subprocess.Popen(
        ["sh", "-c", "sleep 60 & wait"], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while len(processes := list(_processes.members({"it": child.pid}))) < 2:
            assert child.poll() is None
        assert {name for name, _, _ in processes} == {"it"}
        assert child.pid in {pid for _, pid, _ in processes}
        assert _processes.memory((name, pid) for name, pid, _ in processes)["it"] > 0
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
