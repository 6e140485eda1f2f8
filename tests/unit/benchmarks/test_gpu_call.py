"""The GPU benchmark: its parts at toy sizes on the CPU, and what becomes of a part that fails or hangs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import _gpu_parts, _gpu_run, _gpu_system
from benchmarks._gpu_page import page
from benchmarks._gpu_run import PARTS, TOTAL_SECONDS, Part, measured
from tests.unit.deploy.kustomize import K8S

ROOT = K8S.parents[1]
PROCESS = """#!/bin/sh
case $3 in
    works) echo warming up; echo '{"seconds": 0.5, "mfu": null}';;
    fails) echo 'first line' >&2; echo 'torch.OutOfMemoryError: 2 GiB' >&2; exit 1;;
    hangs) exec sleep 60;;
esac
"""
RESULT: dict[str, Any] = {"shape": "tiny", "command": "gpu.sh", "machine": "a machine", "date": "2026-11-30T12:00:00"}


def test_a_part_that_fails_or_hangs_costs_its_own_figures_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = tmp_path / "process"
    process.write_text(PROCESS)
    process.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(process))
    monkeypatch.setattr(_gpu_run, "END_SECONDS", 0.2)
    parts = [Part(name, "Does it?", seconds) for name, seconds in (("fails", 5), ("hangs", 0.2), ("works", 5))]
    figures = measured([*parts, Part("silent", "Does it speak?", 5)], "tiny", 10)
    assert figures["works"] == {"seconds": 0.5, "mfu": None, "took_seconds": figures["works"]["took_seconds"]}
    assert figures["fails"]["error"] == "torch.OutOfMemoryError: 2 GiB"
    assert figures["silent"]["error"] == "no result, exit status 0"
    assert figures["hangs"]["error"] == "not finished after 0 s"
    assert measured(parts, "tiny", 0.1)["works"] == {"error": "no time left"}


def test_the_page_has_every_figure_with_its_path() -> None:
    parts = {"a": {"ours": {"step_seconds": 0.123456, "mfu": None}, "list": [1, 2]}, "b": {"error": "no time left"}}
    text = page(RESULT | {"parts": parts}, {"a": "How fast?", "b": "How far?"})
    assert "## How fast?\n\n| | |\n|---|---|\n| ours, step seconds | 0.1235 |\n| ours, mfu |  |\n| list 1 | 1 |" in text
    assert "## How far?\n\n**Not measured:** no time left\n" in text


def test_the_parts_fit_the_call() -> None:
    assert set(_gpu_parts.PARTS) == {part.name for part in PARTS}
    assert sum(part.seconds for part in PARTS[:-1]) < TOTAL_SECONDS < 480
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    assert "-m benchmarks._gpu_run" in script


def test_passes_are_counted_and_measured_at_a_toy_size(tmp_path: Path) -> None:
    passes = _gpu_parts.plan("tiny", tmp_path, 60)["passes"]
    assert len(passes) == len(_gpu_parts.PASSES)
    assert all(one["counted_mib"] > 0 for one in passes.values())
    assert _gpu_parts.environment("tiny", tmp_path, 60)["versions"]["torch"]


def test_a_case_for_which_no_time_is_left_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu_system, "compared", lambda engines, lag, *settings: {"overhead": lag})
    clock = iter([0.0, 0.0, 10.0, 10.0, 10.0, 20.0, 20.0, 20.0])  # two cases take 10 s each
    monkeypatch.setattr(_gpu_system, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    figures = dict(_gpu_system.cases(None, {256: 32, 2048: 8}, [], 60.0))
    assert figures["256 tokens, lag 0"] == {"overhead": 0}
    assert figures["2048 tokens, lag 0"] == {"left_out": "about 80 s, more than was left"}


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_the_whole_call_runs_on_a_cpu_at_toy_sizes(tmp_path: Path) -> None:
    words = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--tiny", "--out", str(tmp_path)]
    ended = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ended.returncode == 0, ended.stdout
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["score"]["largest_difference"] < 1e-4
    assert parts["learner"]["long_sequence"]["tokens_per_second"] > 0
    assert parts["vllm"]["prompt_logprobs"]["largest_difference"] < 1e-3
    assert "V2 model runner" in parts["vllm"]["prompt_logprob_token_ids"]["refused"]
    assert parts["vllm_lora"]["first_token_seconds"] > 0
    canary = parts["system"]["canary"]
    assert canary["largest"] <= canary["bounds"]["largest"]
    assert len(parts["system"]["steps"]) == 4
    assert all(case["sampled_the_same"] for case in parts["system"]["steps"].values() if "left_out" not in case)
    assert (tmp_path / "gpu.md").read_text().count("## ") == len(PARTS)
