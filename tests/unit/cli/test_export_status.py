"""`cepo export` and `cepo status`: their output and their error messages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fastapi import FastAPI
from transformers import AutoModelForCausalLM

from cepo.cli import main
from cepo.run.folder import RunDir
from cepo.run.lines import Row
from services.trainer.learning.learner import Learner
from tests.helpers.factories import make_config
from tests.helpers.runs import make_status
from tests.helpers.serving import served


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run with two adapters; the newer adapter changes the model."""
    run = RunDir(tmp_path_factory.mktemp("runs") / "run")
    config = make_config()
    run.create(config, resume=False)
    learner = Learner(config)
    for version, size in ((1, 0.0), (2, 0.05)):
        for parameter in learner.parameters:
            torch.nn.init.constant_(parameter, size)
        folder = run.adapters / f"v{version:06d}"
        folder.mkdir()
        for name, data in learner.adapter_files().items():
            (folder / name).write_bytes(data)
    return run


def test_the_newest_adapter_is_written_as_it_is(
    run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "adapter"
    assert main(["export", str(run_dir.path), str(out)]) == 0
    assert capsys.readouterr().out == f"v000002 of run written to {out}\n"
    newest = run_dir.adapters / "v000002"
    card = (out / "README.md").read_text()
    (out / "README.md").unlink()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in newest.iterdir()
    }
    assert card.startswith("---\nbase_model: model\nlibrary_name: peft\n---\n")
    digest = hashlib.sha256((newest / "adapter_model.safetensors").read_bytes()).hexdigest()
    for text in ("| method | `cepo`", "version 2 of run `run`", "seed 0", f"`{digest}`", "transformers 5"):
        assert text in card


def test_a_version_or_the_best_policy_is_exported(
    run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(run: RunDir) -> list[Row]:
        first = {"step": 0, "accuracy/eval_before": 0.4, "accuracy/eval_choice": 0.9, "accuracy/eval_report": 0.7}
        second = {"step": 1, "accuracy/eval_choice": 0.6, "accuracy/eval_report": 0.8}
        return [first | {"accuracy/eval_report_problems": 50.0}, second]

    monkeypatch.setattr(RunDir, "rows", rows)
    for policy, version in (("best", 1), ("2", 2), ("newest", 2)):
        out = tmp_path / policy
        assert main(["export", str(run_dir.path), str(out), "--policy", policy]) == 0
        assert f"v{version:06d} of run written" in capsys.readouterr().out
    card = (tmp_path / "best" / "README.md").read_text()
    assert "| held-out accuracy before | 40.0% |" in card
    assert "| held-out accuracy | 70.0%, 95 % interval 56.2% to 80.9%; the half of the problems" in card


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("best", "measured no policy on held-out problems; name them in data.eval"),
        ("7", "does not hold version 7 (7); it holds v1 to v2."),
        ("latest", "--policy latest: give newest, best or the number of a version"),
    ],
)
def test_a_policy_that_is_not_there_is_named(
    run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str, message: str
) -> None:
    assert main(["export", str(run_dir.path), str(tmp_path / "out"), "--policy", policy]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_merged_model_is_the_base_with_the_adapter(
    run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel

    out = tmp_path / "merged"
    assert main(["export", str(run_dir.path), str(out), "--merge"]) == 0
    assert "it/s" not in capsys.readouterr().err  # no progress bar of transformers
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {(out.stat().st_mode & 0o666)}
    base = AutoModelForCausalLM.from_pretrained(make_config().model.path, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, run_dir.adapters / "v000002")(ids).logits
        found = merged(ids).logits
    assert torch.allclose(found, adapted, atol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2)
    assert (out / "tokenizer.json").is_file()


def test_nothing_is_overwritten_and_an_untrained_run_exports_nothing(
    run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run_dir.path), str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"cepo: {tmp_path} exists; give a new folder\n"
    assert main(["export", str(tmp_path / "absent"), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"cepo: {tmp_path / 'absent'} holds no adapter; train it first\n"
    assert list(tmp_path.iterdir()) == []


def test_the_status_is_what_the_trainer_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = FastAPI()

    @app.get("/v1/status")
    def status() -> dict[str, object]:
        return {"run": "r", "phase": "rollout", "step": 3}

    with served(app) as address:
        (tmp_path / "services.json").write_text(json.dumps({"http": {"trainer": address}}))
        assert main(["status", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"run": "r", "phase": "rollout", "step": 3}
    assert main(["status", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"cepo: the trainer at {address} does not answer")
    assert said.endswith("; the run has ended, or see logs/\n")


@pytest.mark.parametrize(("phase", "code"), [("done", 0), ("drained", 0), ("train", 2)])
def test_a_run_that_ended_is_told_by_what_it_said_last(
    tmp_path: Path, free_port: Callable[[], int], capsys: pytest.CaptureFixture[str], phase: str, code: int
) -> None:
    run = RunDir(tmp_path)
    (tmp_path / "services.json").write_text(json.dumps({"http": {"trainer": f"http://127.0.0.1:{free_port()}"}}))
    run.write_status(status := make_status(run, phase, 19))
    assert main(["status", str(tmp_path)]) == code
    printed = capsys.readouterr()
    assert (json.loads(printed.out) == status) if code == 0 else ("does not answer" in printed.err)


@pytest.mark.parametrize("addresses", [None, '{"http": {"rollout": "http://127.0.0.1:1"}}', '{"http": '])
def test_a_folder_without_a_trainer_has_no_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], addresses: str | None
) -> None:
    if addresses is not None:
        (tmp_path / "services.json").write_text(addresses)
    assert main(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"cepo: {tmp_path} holds no run that was started here; give the folder of one\n"
