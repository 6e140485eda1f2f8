"""Sweeps: the sweep file and its error messages, the runs that are trained or resumed, and the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from cepo.cli import sweep
from cepo.errors import UserError
from cepo.run import file as runfile
from cepo.run.folder import RunDir
from tests.helpers.factories import RUNS

SWEEPS = Path(__file__).parents[3] / "deploy" / "sweeps"


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.toml")), ids=lambda path: path.name)
def test_every_run_of_a_shipped_sweep_loads(path: Path) -> None:
    found = sweep.read(path)
    assert found.name == path.stem
    for entry in found.run:
        assert runfile.load(path.parent / entry.file, list(entry.set)).loop.steps == 50


def test_the_learning_rate_is_not_what_tells_the_methods_of_table_2_apart() -> None:
    found = sweep.read(SWEEPS / "table2.toml")
    rates = {e.name: runfile.load(SWEEPS / e.file, list(e.set)).optim.lr for e in found.run}
    assert {rates[f"{name}-equal-lr"] for name in ("grpo", "rlsd", "opsd", "sdpo")} == {rates["cepo"]} == {5e-6}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is not TOML"),
        ('name = "\xe9"', "is not TOML"),
        ('name = "s"', "key run: Field required"),
        ('name = "s"\n[[run]]\nname = "a"', "key run.0.file: Field required"),
        ('name = "s"\n[[run]]\nname = "a"\nfile = "x"\nlr = 1', "key run.0.lr: Extra inputs are not permitted"),
        ('name = "s"' + '\n[[run]]\nname = "a"\nfile = "x"' * 2, "names 'a' twice"),
    ],
)
def test_a_sweep_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as refusal:
        sweep.read(path)
    assert message in str(refusal.value)


def test_the_table_compares_what_was_measured(tmp_path: Path) -> None:
    found = sweep.Sweep(name="s", run=tuple(sweep.SweepRun(name=name, file="x") for name in ("one", "two")))
    (tmp_path / "one").mkdir()
    steps = [
        {"step": 0, "accuracy/eval_before": 0.5, "time/step_seconds": 1.0},
        {"step": 1, "accuracy/eval": 0.75, "time/step_seconds": 3.0},
        {"step": 2, "accuracy/eval": 0.625, "time/step_seconds": 2.0},
    ]
    (tmp_path / "one" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    console = Console(width=100)
    with console.capture() as capture:
        console.print(sweep.table(found, tmp_path))
    (one,) = [line for line in capture.get().splitlines() if "one" in line]
    assert [cell.strip() for cell in one.strip("│").split("│")] == ["one", "50.00%", "62.50%", "75.00%", "2.0"]


def test_a_last_line_that_a_crash_cut_short_is_left_out_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    row = '{"step": 0, "accuracy/eval": 0.5, "time/step_seconds": 1.0}'
    (tmp_path / "one" / "metrics.jsonl").write_text(f"{row}\n{row[:20]}")
    plan = sweep.Sweep(name="s", run=(sweep.SweepRun(name="one", file="x"),))
    console = Console(width=100)
    with console.capture() as capture:
        console.print(sweep.table(plan, tmp_path))
    assert "50.00%" in capture.get()


def test_a_sweep_trains_what_is_not_complete_and_resumes_what_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` is replaced, because training would start engines."""
    calls: list[tuple[str, list[str], bool, str]] = []

    def train(file: Path, *, run_dir: Path, set: list[str], resume: bool, redis: str) -> None:
        calls.append((run_dir.name, set, resume, redis))
        run = RunDir(run_dir)
        run.create(runfile.load(file, set), resume=resume)
        for step in range(len(run.rows()), 2):
            run.append({"step": step, "time/step_seconds": 1.0})

    monkeypatch.setattr(sweep, "train", train)
    (tmp_path / "s.toml").write_text(
        'name = "s"\n' + "".join(f'[[run]]\nname = "{name}"\nfile = "{RUNS / "tiny_cepo.toml"}"\n' for name in "ab")
    )
    folder = tmp_path / "runs"
    stopped = RunDir(folder / "b")
    stopped.create(runfile.load(RUNS / "tiny_cepo.toml", ["loop.steps=2"]), resume=False)
    stopped.append({"step": 0, "time/step_seconds": 1.0})
    sweep.sweep(tmp_path / "s.toml", run_dir=folder, set=["loop.steps=2"], redis="redis://r/0")
    expected = [("a", ["loop.steps=2"], False, "redis://r/0"), ("b", ["loop.steps=2"], True, "redis://r/0")]
    assert calls == expected
    sweep.sweep(tmp_path / "s.toml", run_dir=folder, set=["loop.steps=2"])
    assert calls == expected
    with pytest.raises(UserError, match=r"^a was stopped; resume with the same command$"):
        sweep.sweep(tmp_path / "s.toml", run_dir=folder, set=["loop.steps=3"])
    assert capsys.readouterr().out.count("seconds a step") == 2
