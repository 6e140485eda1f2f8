"""Sweeps: what a file says, what is refused, what is trained again, and the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from cepo.cli import sweep
from cepo.errors import UserError
from cepo.run import file as runfile

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
    found = sweep.Sweep(name="s", run=tuple(sweep.Entry(name=name, file="x") for name in ("one", "two")))
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
