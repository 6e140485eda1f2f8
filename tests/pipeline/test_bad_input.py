"""Invalid input to `cepo train`: exit 2, one line that names the key, row or address, and no files written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cepo.cli import main
from tests.pipeline.support import TINY


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def refused(capsys: pytest.CaptureFixture[str], run_dir: Path, *words: str) -> str:
    """The line that `cepo train` prints for invalid input."""
    assert main(["train", str(TINY), "--run-dir", str(run_dir), *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("cepo: ")
    return lines[0]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("optim.lrr=1", "config key optim.lrr is unknown; known here: gradient_checkpointing, lr,"),
        ("loop.steps=many", "config key loop.steps='many'"),
        ("algorithm.eps_w=1.5", "config key algorithm.eps_w=1.5"),
        ("algorithm.lam=-0.1", "config key algorithm.lam=-0.1"),
        ("algorithm.name=cepoo", "config key algorithm.name='cepoo' is unknown; known: 'grpo', 'dr-grpo', "),
        ("lora.rank=64", "lora.rank=64 is above engine.max_lora_rank=8"),
        ("model.path=/no/such/model", "model.path=/no/such/model: no config.json there"),
        ("data.train=/no/such.jsonl", "data.train=/no/such.jsonl: no such file"),
        ("data.answer=solution", "no column 'solution'; the columns are question, answer"),
        ('lora.targets=["qkv_proj"]', "has no module qkv_proj; choose from down_proj, gate_proj,"),
        ('data.where=["level=5"]', "data.where 'level=5': no column 'level'; the columns are question, answer"),
        ("model.max_length=70", "above model.max_length=70"),
        ("steps=3", "config key steps is unknown"),
        ("loop", "write key=value"),
    ],
)
def test_a_mistake_in_the_run_file(setting: str, says: str, capsys: pytest.CaptureFixture[str], run_dir: Path) -> None:
    assert says in refused(capsys, run_dir, "--set", setting)
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "is empty: it has no rows"),
        ([{"question": "1 + 1 = ?", "answer": ""}], "row 0: reference answer '' holds no answer"),
        ([{"question": "1 + 1 = ?", "answer": None}], "row 0: column 'answer' holds None"),
        ([{"question": "1 + 1 = ?", "answer": "2"}, {"question": "", "answer": "2"}], "row 1: column 'question'"),
        (
            [{"question": "1 + 1 = ?", "answer": "2"}, {"question": "a half?", "answer": "\\frac{1}{2"}],
            "row 1: reference answer '\\\\frac{1}{2' does not verify against itself",
        ),
        ([{"question": "1 + " * 400, "answer": "2"}], "row 0: prompt, hint, sampling.max_tokens="),
    ],
)
def test_a_mistake_in_the_data(
    rows: list[dict[str, str]], says: str, capsys: pytest.CaptureFixture[str], run_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert says in refused(capsys, run_dir, "--set", f"data.train={path}")
    assert not run_dir.exists()


def test_bad_rows_are_dropped_when_asked_and_an_all_bad_set_is_refused(
    capsys: pytest.CaptureFixture[str], run_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"question": "1 + 1 = ?", "answer": ""}) + "\n")
    said = refused(capsys, run_dir, "--set", f"data.train={path}", "--set", "data.on_bad_row=drop")
    assert "every row was dropped, the first because" in said


def test_a_run_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "no/such.toml"]) == 2
    assert "run file no/such.toml: No such file or directory" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str], run_dir: Path) -> None:
    said = refused(capsys, run_dir, "--set", "engine.device=cuda")
    assert (
        'engine.device="cuda": PyTorch sees no GPU here; install its CUDA build, or set engine.device = "cpu"' in said
    )


def test_a_redis_that_does_not_answer(
    capsys: pytest.CaptureFixture[str], run_dir: Path, free_port: Callable[[], int]
) -> None:
    address = f"127.0.0.1:{free_port()}/0"
    said = refused(capsys, run_dir, "--redis", f"redis://{address}")
    assert f"Redis at {address} does not answer" in said


def test_a_run_folder_in_use_and_one_that_holds_no_run(capsys: pytest.CaptureFixture[str], run_dir: Path) -> None:
    assert "holds no run to resume" in refused(capsys, run_dir, "--resume")
    run_dir.mkdir()
    (run_dir / "config.toml").write_text("")
    assert f"holds a run already; continue it with `cepo resume {run_dir}`" in refused(capsys, run_dir)
