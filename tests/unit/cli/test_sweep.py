"""Sweeps: the sweep file and its error messages, the runs that are trained or resumed, and the table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import pytest
from rich.console import Console

from cepo.cli import sweep
from cepo.cli.sweep_plot import draw
from cepo.cli.sweep_results import RunResult, as_json, as_markdown, mean_interval
from cepo.errors import UserError
from cepo.run import file as runfile
from cepo.run.config import RunConfig
from cepo.run.folder import RunDir
from cepo.run.local import KeptServices
from tests.helpers.factories import RUNS

SWEEPS = Path(__file__).parents[3] / "deploy" / "sweeps"


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.toml")), ids=lambda path: path.name)
def test_every_run_of_a_shipped_sweep_loads(path: Path) -> None:
    found = sweep.read(path)
    assert found.name == path.stem
    for entry in found.run:
        steps = 12 if path.stem.startswith("evidence") else 50
        assert runfile.load(path.parent / entry.file, list(entry.set)).loop.steps == steps


def test_the_learning_rate_is_not_what_tells_the_methods_of_table_2_apart() -> None:
    found = sweep.read(SWEEPS / "table2.toml")
    rates = {e.name: runfile.load(SWEEPS / e.file, list(e.set)).optim.lr for e in found.run}
    assert {rates[f"{name}-equal-lr"] for name in ("grpo", "rlsd", "opsd", "sdpo")} == {rates["cepo"]} == {5e-6}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is not TOML"),
        ('name = "\xe9"', "is not TOML"),
        ('name = "s"', "key run: is missing"),
        ('name = "s"\n[[run]]\nname = "a"', "key run.0.file: is missing"),
        ('name = "s"\n[[run]]\nname = "a"\nfile = "x"\nlr = 1', "key run.0.lr: unknown key"),
        ('name = "s"' + '\n[[run]]\nname = "a"\nfile = "x"' * 2, "names 'a' twice"),
    ],
)
def test_a_sweep_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as refusal:
        sweep.read(path)
    assert message in str(refusal.value)


def rows(after: float, *, before: float = 0.5) -> list[dict[str, float]]:
    """The metrics of a run of three steps that is evaluated twice and is best at the first evaluation."""
    return [
        {"step": 0, "accuracy/eval_before": before, "time/step_seconds": 1.0, "tokens/generated": 100.0},
        {"step": 1, "accuracy/eval": 0.75, "time/step_seconds": 3.0, "tokens/generated": 100.0},
        {
            "step": 2,
            "accuracy/eval": after,
            "accuracy/train": after,
            "time/step_seconds": 2.0,
            "tokens/generated": 100.0,
        },
    ]


def write_rows(folder: Path, metrics: Sequence[Mapping[str, float]]) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))


def plan_of(*names: str) -> sweep.Sweep:
    return sweep.Sweep(name="s", run=tuple(sweep.SweepRun(name=name, file="x.toml") for name in names))


def printed(results: Sequence[RunResult]) -> str:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(sweep.table("s", results))
    return capture.get()


def test_the_table_shows_the_accuracy_after_the_last_step_and_not_the_best_one(tmp_path: Path) -> None:
    write_rows(tmp_path / "one", rows(0.625))
    text = printed(sweep.collect(plan_of("one", "two"), tmp_path, [None]))
    (one,) = [line for line in text.splitlines() if "one" in line]
    assert [cell.strip() for cell in one.strip("│").split("│")] == ["one", "50.00%", "62.50%", "-", "2.0"]


def test_runs_are_compared_within_each_seed(tmp_path: Path) -> None:
    """Seeds differ by 20 points and methods by 2: only the paired difference shows it."""
    finals = {"first": [0.40, 0.50, 0.60, 0.61], "second": [0.42, 0.52, 0.63]}
    for name, values in finals.items():
        for seed, after in enumerate(values):
            write_rows(tmp_path / name / f"{name}-seed-{seed}", rows(after))
    first, second = sweep.collect(plan_of("first", "second"), tmp_path, [0, 1, 2, 3])
    assert (first.mean, first.deviation) == pytest.approx((fmean(finals["first"]), stdev(finals["first"])))
    assert first.difference is None
    gap = second.difference
    assert gap is not None
    assert gap.mean == pytest.approx((0.02 + 0.02 + 0.03) / 3)
    assert gap.seeds == 3
    assert (gap.low, gap.high) == pytest.approx((0.02, 0.03))
    assert "+2.33 points [+2.00, +3.00]" in printed([first, second])
    document = as_markdown("s", [first, second], {"first": 3, "second": 3})
    points = "+2.33 points [+2.00, +3.00]"
    assert f"| second | 50.00% | 52.33% ± 10.50% | {points} | 52.33% | {points} | 3 | 3 | 300 | 2.0 |" in document
    stored = json.loads(as_json("s", [first, second], {"first": 3, "second": 3}))
    assert stored["runs"][1]["seeds"]["2"]["curve"] == [[0, 0, 0.5], [2, 200, 0.75], [3, 300, 0.63]]
    assert draw("s", [first, second], tmp_path / "curves")[0].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_the_interval_of_a_mean_is_the_percentiles_of_resampled_means() -> None:
    """Of two values, a quarter of the samples repeats the first and a quarter the second."""
    assert mean_interval([0.0, 1.0]) == (0.0, 1.0)
    assert mean_interval([3.0] * 5) == (3.0, 3.0)
    values = [float(value) for value in range(100)]
    low, high = mean_interval(values)
    reach = 1.96 * stdev(values) / 10
    assert (low, high) == pytest.approx((49.5 - reach, 49.5 + reach), abs=0.4)
    assert mean_interval(values) == (low, high)


@pytest.mark.parametrize(
    ("text", "seeds"), [("", [None]), ("3", [3]), ("0-2", [0, 1, 2]), ("0-1, 7,4-5", [0, 1, 7, 4, 5])]
)
def test_seeds_are_numbers_and_ranges(text: str, seeds: list[int | None]) -> None:
    assert sweep.parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [("a", "write numbers"), ("1-", "write numbers"), ("5-3", "write 3-5"), ("0-3,2", "twice"), (",", "write numbers")],
)
def test_a_text_that_is_no_list_of_seeds_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"--seeds {text}.*{message}"):
        sweep.parse_seeds(text)


def test_a_last_line_that_a_crash_cut_short_is_left_out_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    row = '{"step": 0, "accuracy/eval": 0.5, "time/step_seconds": 1.0}'
    (tmp_path / "one" / "metrics.jsonl").write_text(f"{row}\n{row[:20]}")
    assert "50.00%" in printed(sweep.collect(plan_of("one"), tmp_path, [None]))


def test_a_sweep_trains_what_is_not_complete_and_resumes_what_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` is replaced, because training would start engines."""
    calls: list[tuple[str, int, bool, str]] = []

    def train(file: Path, config: RunConfig, run: RunDir, *, resume: bool, redis: str, kept: KeptServices) -> None:
        calls.append((run.name, config.loop.steps, resume, redis))
        run.create(config, resume=resume)
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
    expected = [("a", 2, False, "redis://r/0"), ("b", 2, True, "redis://r/0")]
    assert calls == expected
    sweep.sweep(tmp_path / "s.toml", run_dir=folder, set=["loop.steps=2"])
    assert calls == expected
    with pytest.raises(UserError, match=r"^a was stopped; resume with the same command$"):
        sweep.sweep(tmp_path / "s.toml", run_dir=folder, set=["loop.steps=3"])
    assert capsys.readouterr().out.count("seconds a step") == 2
    assert "b | - | - | - | - | - | 1 | 2 |" in (folder / "results.md").read_text()


def test_a_sweep_with_seeds_trains_every_run_with_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, int]] = []

    def train(file: Path, config: RunConfig, run: RunDir, *, resume: bool, redis: str, kept: KeptServices) -> None:
        trained.append((str(run.path.relative_to(folder)), config.loop.seed))
        run.create(config, resume=resume)
        for row in rows(0.6 + config.loop.seed / 100):
            run.append(row)

    folder = tmp_path / "runs"
    monkeypatch.setattr(sweep, "train", train)
    text = "".join(f'[[run]]\nname = "{name}"\nfile = "{RUNS / "tiny_cepo.toml"}"\n' for name in "ab")
    (tmp_path / "s.toml").write_text('name = "s"\n' + text)
    sweep.sweep(tmp_path / "s.toml", run_dir=folder, set=["loop.steps=3"], seeds="4-5")
    assert trained == [(f"{name}/{name}-seed-{seed}", seed) for seed in (4, 5) for name in "ab"]
    written = {"results.json", "results.md", "curves.png", "curves.svg"}
    assert {path.name for path in folder.iterdir()} == {"a", "b"} | written
    sweep.sweep(tmp_path / "s.toml", run_dir=folder, set=["loop.steps=3"], seeds="4-5")
    assert len(trained) == 4


def test_the_evidence_is_written_for_every_method_of_its_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shortened form of docs/evidence.md's command; a nightly test runs it with engines."""

    def train(file: Path, config: RunConfig, run: RunDir, *, resume: bool, redis: str, kept: KeptServices) -> None:
        run.create(config, resume=resume)
        for row in rows(0.5 + config.loop.seed / 100):
            run.append(row)

    monkeypatch.setattr(sweep, "train", train)
    sweep.sweep(SWEEPS / "evidence.toml", run_dir=tmp_path, set=["loop.steps=3"], seeds="0-1")
    names = [entry.name for entry in sweep.read(SWEEPS / "evidence.toml").run]
    assert names[:4] == ["grpo", "rlsd", "cepo", "cepo-own-answer"]
    stored = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [(run["name"], len(run["seeds"])) for run in stored] == [(name, 2) for name in names]
    configs = [runfile.load(SWEEPS / entry.file, list(entry.set)) for entry in sweep.read(SWEEPS / "evidence.toml").run]
    assert len({(config.optim.lr, config.sampling.prompts, config.sampling.samples) for config in configs}) == 1
