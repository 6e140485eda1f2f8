"""The progress lines of a run, and the commands that its summary suggests."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import httpx
import pytest

from cepo.cli.progress import COLUMNS, ProgressDisplay
from cepo.run import file as runfile
from cepo.run.folder import RunDir
from tests.helpers.factories import RUNS
from tests.helpers.terminals import on_a_terminal, plain


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_method_proposed_to_compare_with_loads(
    tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = runfile.load(path), RunDir(tmp_path / "run")
    folder.create(config, resume=False)
    row = {"step": 0, "reward/mean": 0.5, "time/step_seconds": 1.0}
    (folder.path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    ProgressDisplay(config, folder).summary(path)
    said = capsys.readouterr().out
    proposed = [line for line in said.splitlines() if "to compare" in line]
    assert len(proposed) == (config.algorithm.name not in ("dpo", "ctdpo", "prm"))
    for line in proposed:
        words = shlex.split(line)
        other = runfile.load(Path(words[words.index("train") + 1]), [words[words.index("--set") + 1]])
        assert other.algorithm.name != config.algorithm.name


def test_each_step_is_printed_once_and_nan_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, folder = runfile.load(RUNS / "tiny_cepo.toml"), RunDir(tmp_path / "run")
    folder.create(config, resume=False)
    folder.append({"step": 0, "reward/mean": 0.5, "time/step_seconds": 1.0})
    with ProgressDisplay(config, folder) as progress, httpx.Client(base_url="http://127.0.0.1:9") as trainer:
        folder.append({"step": 1, "reward/mean": float("nan"), "time/step_seconds": 1.0})
        progress.poll(trainer)
        progress.poll(trainer)
        with folder.metrics.open("a") as file:
            file.write('{"step": 2, "rew')
        progress.poll(trainer)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition("  step time")[0] for line in said] == ["step 1  reward nan"]


def summary_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], *rows: dict[str, float]) -> str:
    """What a run with these rows prints while it runs and at its end."""
    config, folder = runfile.load(RUNS / "tiny_cepo.toml", ["sampling.max_tokens=10"]), RunDir(tmp_path / "run")
    folder.create(config, resume=False)
    with ProgressDisplay(config, folder) as progress:
        for step, row in enumerate(rows):
            folder.append({"step": step, "reward/mean": 0.0, "time/step_seconds": 1.0, **row})
    progress.summary(RUNS / "tiny_cepo.toml")
    return capsys.readouterr().out


def test_a_run_whose_responses_are_all_cut_is_told_to_raise_the_limit_and_not_to_change_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = summary_of(tmp_path, capsys, {"length/truncated_fraction": 1.0}, {"length/truncated_fraction": 0.9})
    assert (
        "every reward was 0, and 95% of the responses were cut at sampling.max_tokens=10, before an answer. Raise "
        "sampling.max_tokens.\n"
    ) in said
    assert "stronger model" not in said


def test_a_run_without_reward_whose_responses_end_is_told_to_change_model_or_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = summary_of(tmp_path, capsys, {"length/truncated_fraction": 0.25}, {"length/truncated_fraction": 0.0})
    assert "use a stronger model or easier data" in said
    first, second = (line for line in said.splitlines() if line.startswith("step "))
    assert "  cut short 25%  " in first
    assert "cut short" not in second, "only a step that cut a response says so"


def test_the_notes_of_the_trainer_are_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, folder = runfile.load(RUNS / "tiny_cepo.toml"), RunDir(tmp_path / "run")
    folder.create(config, resume=False)
    status = {"phase": "rollout", "step": 0, "notes": ["checkpoints/step-000002/state.pt is [missing]"]}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=status))
    with ProgressDisplay(config, folder) as progress, httpx.Client(transport=transport, base_url="http://run") as web:
        progress.poll(web)
        progress.poll(web)
    said = capsys.readouterr().out
    assert said == "live page http://run\n  checkpoints/step-000002/state.pt is [missing]\n"
    notes = ["checkpoints/step-000002/state.pt is [missing]", "the last step had a gap"]
    folder.write_status(status | {"notes": notes})
    progress.summary(RUNS / "tiny_cepo.toml")
    assert capsys.readouterr().out.startswith("  the last step had a gap\n"), "also if the trainer has ended since"


def test_the_accuracy_before_the_first_step_is_printed_once_and_before_any_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = runfile.load(RUNS / "tiny_cepo.toml"), RunDir(tmp_path / "run")
    folder.create(config, resume=False)
    status = {"phase": "rollout", "step": 0, "metrics": {"accuracy/eval_before": 0.59}}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=status))
    with ProgressDisplay(config, folder) as progress, httpx.Client(transport=transport, base_url="http://run") as web:
        progress.poll(web)
        folder.append({"step": 0, "reward/mean": 0.5, "time/step_seconds": 1.0})
        progress.poll(web)
    page, before, step = capsys.readouterr().out.splitlines()
    assert (page, before) == ("live page http://run", "held-out accuracy before the first step: 59.0%")
    assert step.startswith("step 0  reward 0.500")


@pytest.mark.parametrize(("method", "credit", "cut"), [("cepo", True, 0.0), ("grpo", False, 0.25)])
def test_a_step_has_the_columns_of_its_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, credit: bool, cut: float
) -> None:
    config = runfile.load(RUNS / "tiny_cepo.toml", [f"algorithm.name={method}"])
    folder = RunDir(tmp_path / "run")
    folder.create(config, resume=False)
    row = {key: 0.0 for _, key, _ in COLUMNS} | {"step": 0, "time/step_seconds": 1.0, "length/truncated_fraction": cut}
    with ProgressDisplay(config, folder):
        folder.append(row)
    printed = capsys.readouterr().out

    def live() -> None:
        with ProgressDisplay(config, folder):
            pass

    table = plain(on_a_terminal(live, columns=200)[1])
    for text in (printed, table):
        assert all((name in text) is credit for name in ("lambda", "delta>0", "delta<0", "clipped", "teacher"))
        assert ("cut short" in text) is (cut > 0)
        assert "held out" in text


def test_a_resume_that_waited_for_its_first_step_does_not_count_the_wait_in_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = runfile.load(RUNS / "tiny_cepo.toml", ["loop.steps=20"]), RunDir(tmp_path / "run")
    folder.create(config, resume=False)
    for step in range(10):
        folder.append({"step": step, "reward/mean": 0.5, "time/step_seconds": 1.0})
    with ProgressDisplay(config, folder):
        folder.append({"step": 10, "reward/mean": 0.5, "time/step_seconds": 18.7})
    assert capsys.readouterr().out.endswith(" 0m09s left\n")
