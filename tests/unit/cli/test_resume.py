"""`cepo resume` and `cepo train --resume`: what they refuse, before anything is written or started."""

from __future__ import annotations

from pathlib import Path

import pytest

from cepo.cli import main, train
from cepo.cli.progress import ProgressDisplay
from cepo.run import file as runfile
from cepo.run.folder import RunDir, run_id
from cepo.run.lock import locked
from tests.helpers.factories import RUNS
from tests.helpers.runs import begin_run, make_metrics

TINY = RUNS / "tiny_cepo.toml"
GRPO = ("algorithm.name=grpo", "loop.steps=2")


class Started(Exception):
    """The launcher would start its processes now."""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that was started with two overrides and made a step."""
    folder = RunDir(tmp_path / "my run")
    begin_run(folder, runfile.load(TINY, GRPO))
    folder.append(make_metrics(0))
    return folder


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The stacks that the launcher would have started."""
    stacks = list[object]()

    def note(stack: object, progress: ProgressDisplay, launch: object) -> None:
        stacks.append(stack)
        progress.draining()

    monkeypatch.setattr(train, "_train", note)
    return stacks


def contents(folder: RunDir) -> dict[str, bytes]:
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def commands(run: RunDir, *words: str) -> list[list[str]]:
    overrides = [word for override in GRPO for word in ("--set", override)]
    return [
        ["resume", str(run.path), *words],
        ["train", str(TINY), "--run-dir", str(run.path), "--resume", *overrides, *words],
    ]


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lora.alpha=256", "lora.alpha (16 -> 256)"),
        ("loop.seed=7", "loop.seed (0 -> 7)"),
        ("optim.lr=1e-5", "optim.lr (0.003 -> 1e-05)"),
        ("reward.format=0.1", "reward.format (0.0 -> 0.1)"),
        ("algorithm.name=cepo", "algorithm.name ('grpo' -> 'cepo')"),
        ("model.dtype=bfloat16", "model.dtype ('float32' -> 'bfloat16')"),
    ],
)
def test_a_change_of_what_is_computed_is_refused_with_both_values_and_nothing_is_written(
    run: RunDir, started: list[object], capsys: pytest.CaptureFixture[str], way: int, override: str, says: str
) -> None:
    before = contents(run)
    assert main(commands(run, "--set", override)[way]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cepo: the run in {run.path} would change what it computes: {says}; ")
    assert line.endswith(f"or give --allow-change {override.partition('=')[0]}")
    assert contents(run) == before
    assert started == []


def test_the_run_file_without_its_overrides_is_refused(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(TINY), "--run-dir", str(run.path), "--resume"]) == 2
    assert "algorithm.name ('grpo' -> 'cepo')" in capsys.readouterr().err


def test_other_problems_are_refused_and_nothing_is_written(
    run: RunDir, started: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "1 + 1 = ?", "answer": "2"}\n')
    before = contents(run)
    assert main(commands(run, "--set", f"data.train={other}")[0]) == 2
    assert "gives other problems than this run has (sha256 " in capsys.readouterr().err
    assert contents(run) == before
    assert started == []


@pytest.mark.parametrize("way", [0, 1])
def test_what_may_change_is_named_and_what_is_allowed_too(
    run: RunDir, started: list[object], capsys: pytest.CaptureFixture[str], way: int
) -> None:
    words = ("--set", "loop.steps=4", "--set", "eval.every=1", "--set", "optim.lr=1e-3", "--allow-change", "optim.lr")
    assert main(commands(run, *words)[way]) == 0
    said = capsys.readouterr().out
    assert "  changed: optim.lr (0.003 -> 0.001), loop.steps (2 -> 4), eval.every (10 -> 1)\n" in said
    assert len(started) == 1
    assert (runfile.load(run.config).loop.steps, runfile.load(run.config).algorithm.name) == (4, "grpo")
    assert run.changes.read_text().count("\n") == 3


def test_the_command_that_an_interrupt_prints_resumes_the_run_as_it_is(
    run: RunDir, started: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resume", str(run.path)]) == 0
    said = capsys.readouterr().out
    assert "changed:" not in said
    assert f"resume with:\n  python -m cepo resume '{run.path}'\n" in said
    assert not run.changes.exists()


def test_a_folder_in_use_is_refused_in_a_line_that_names_the_process(
    run: RunDir, started: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    for lock in (run.launcher_lock, run.trainer_lock):
        with locked(lock):
            for words in commands(run):
                assert main(words) == 2
                (line,) = capsys.readouterr().err.splitlines()
                assert line.startswith(f"cepo: {run.path} is in use by process ")
    assert started == []


def test_allowing_a_change_is_for_a_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(TINY), "--run-dir", str(tmp_path / "run"), "--allow-change", "optim.lr"]) == 2
    assert "--allow-change is for a run that is resumed; give --resume too" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["resume", "{}"], ["resume", "{}", "--set", "loop.steps=3"]])
def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main([word.format(tmp_path / "none") for word in words]) == 2
    assert capsys.readouterr().err == f"cepo: {tmp_path / 'none'} holds no run to resume; give the folder of one\n"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("content", ['name = "cut', "", "[model]\n"])
def test_a_damaged_configuration_is_one_line(run: RunDir, capsys: pytest.CaptureFixture[str], content: str) -> None:
    run.config.write_text(content)
    assert main(["resume", str(run.path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cepo: ")


def test_ids_of_runs_are_safe_and_different() -> None:
    names = ["run", "my run", "my-run", "läufe", "lau fe", "実験", "実 験", "a/b", "x" * 200, "🦀"]
    ids = [run_id(name) for name in names]
    assert len(set(ids)) == len(names)
    assert ids[0] == "run"
    assert ids[2] == "my-run"
    assert all(run_id(each) == each for each in ids)
