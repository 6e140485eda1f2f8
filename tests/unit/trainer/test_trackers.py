"""The trackers of a run: TensorBoard and W&B by key, others by a function of the user."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from cepo.cli.preflight.checks import CHECKS
from cepo.cli.preflight.preflight import Preflight
from cepo.errors import UserError
from cepo.run.folder import RunDir
from services.trainer.trackers import TrackedRun, Trackers
from tests.helpers.factories import RUNS, make_config

ROWS = [{"step": 0, "reward/mean": 0.5}, {"step": 1, "reward/mean": 0.75}]
EXAMPLES = RUNS.parents[1] / "examples"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "sums")
    made.create(make_config(), resume=False)
    return made


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user in the folder where the run is started; it is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path / "mine.py"


def test_a_step_is_a_line_of_metrics_and_points_of_tensorboard(run: RunDir, notes: list[str]) -> None:
    trackers = Trackers(make_config("telemetry.tensorboard=true"), run, notes.append)
    for row in ROWS:
        trackers.step(row)
    assert run.rows() == ROWS
    assert any((run.path / "tensorboard").iterdir())
    assert notes == []


def test_wandb_gets_every_row_under_the_name_of_the_run(
    run: RunDir, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    def init(**options: Any) -> Any:
        sent.append(options)
        return SimpleNamespace(log=lambda row, *, step: sent.append((row, step)))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    Trackers(make_config("telemetry.wandb_project=mine"), run, notes.append).step(ROWS[1])
    assert sent == [{"project": "mine", "name": "sums", "resume": "allow", "id": "sums"}, (ROWS[1], 1)]


def test_a_function_of_the_user_opens_a_tracker_and_gets_every_row(run: RunDir, mine: Path, notes: list[str]) -> None:
    mine.write_text(
        "def opened(run):\n"
        "    file = (run.path / 'mine.txt').open('a')\n"
        "    print(run.name, run.config['loop']['steps'], file=file)\n"
        "    return lambda row, step: print(step, row['reward/mean'], file=file, flush=True)\n"
    )
    config = make_config('telemetry.trackers=["mine:opened"]', "loop.steps=7")
    for row in ROWS:
        Trackers(config, run, notes.append).step(row)
    assert (run.path / "mine.txt").read_text() == "sums 7\n0 0.5\nsums 7\n1 0.75\n"


def test_a_tracker_that_fails_is_noted_once_and_the_run_goes_on(run: RunDir, mine: Path, notes: list[str]) -> None:
    mine.write_text("def opened(run):\n    return lambda row, step: 1 / 0\n")
    trackers = Trackers(make_config('telemetry.trackers=["mine:opened"]'), run, notes.append)
    for row in ROWS:
        trackers.step(row)
    assert run.rows() == ROWS
    assert notes == [
        "telemetry.trackers: mine:opened failed at step 0: ZeroDivisionError: division by zero; metrics.jsonl has "
        "every row"
    ]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            "def opened(run):\n    raise OSError('no server')",
            "mine:opened does not open: OSError: no server; correct",
        ),
        (
            "def opened(run):\n    pass",
            "mine:opened returned NoneType; return a function that takes a row and",
        ),
        ("opened = 3", "mine:opened is int, not a function"),
        ("import absent_package", "mine:opened cannot be imported: ModuleNotFoundError: No module named"),
    ],
)
def test_a_tracker_that_does_not_open_stops_the_run_before_a_step(
    run: RunDir, mine: Path, notes: list[str], code: str, says: str
) -> None:
    mine.write_text(code)
    with pytest.raises(UserError) as refused:
        Trackers(make_config('telemetry.trackers=["mine:opened"]'), run, notes.append)
    assert str(refused.value).startswith("telemetry.trackers: ")
    assert says in str(refused.value)


def test_the_check_before_a_run_imports_the_trackers(tmp_path: Path, mine: Path) -> None:
    def found(*settings: str) -> list[tuple[str, str]]:
        return list(CHECKS["trackers"](Preflight(make_config(*settings), tmp_path)))

    mine.write_text("def opened(run): ...")
    assert found() == [("ok", "metrics.jsonl")]
    both = ("telemetry.tensorboard=true", 'telemetry.trackers=["mine:opened"]')
    assert found(*both) == [("ok", "metrics.jsonl, tensorboard, trackers: mine:opened")]
    with pytest.raises(UserError, match="absent:f cannot be imported: ModuleNotFoundError"):
        found('telemetry.trackers=["absent:f"]')


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ('["./mine.py"]', "telemetry.trackers='./mine.py': write module:function, as in my_trackers:mlflow_run"),
        ('["a:b", "a:b"]', r"telemetry.trackers=\['a:b', 'a:b'\] names a function twice"),
    ],
)
def test_the_names_of_trackers_have_a_form(setting: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_config(f"telemetry.trackers={setting}")


class Server:
    """The functions of MLflow and trackio that the examples call, as in mlflow 3.17 and trackio 0.43."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def mlflow(self) -> ModuleType:
        module = ModuleType("mlflow")

        def start_run(run_id: str | None = None, experiment_id: str | None = None, run_name: str | None = None) -> Any:
            self.calls.append(("start_run", run_id, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id="1f"))

        def log_metrics(metrics: Mapping[str, float], step: int | None = None, synchronous: bool | None = None) -> None:
            self.calls.append(("log", dict(metrics), step))

        module.__dict__.update(set_experiment=lambda experiment_name=None: None, start_run=start_run)
        module.__dict__.update(log_metrics=log_metrics, log_dict=lambda dictionary, artifact_file, run_id=None: None)
        return module

    def trackio(self) -> ModuleType:
        module = ModuleType("trackio")

        def init(project: str, name: str | None = None, config: Any = None, resume: str = "never") -> None:
            self.calls.append(("init", name, resume))

        def log(metrics: Mapping[str, Any], step: int | None = None) -> None:
            self.calls.append(("log", dict(metrics), step))

        module.__dict__.update(init=init, log=log)
        return module


@pytest.mark.parametrize(
    ("tracker", "opened"),
    [
        ("mlflow", [("start_run", None, "sums"), ("start_run", "1f", "sums")]),
        ("trackio", [("init", "sums", "allow"), ("init", "sums", "allow")]),
    ],
)
def test_the_examples_open_once_and_again_after_a_resume(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, tracker: str, opened: list[Any]
) -> None:
    server = Server()
    monkeypatch.setitem(sys.modules, tracker, getattr(server, tracker)())
    spec = importlib.util.spec_from_file_location("trackers", EXAMPLES / "trackers.py")
    examples = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(examples)
    tracked = TrackedRun(run.name, run.path, make_config().model_dump(mode="json"))
    for row in ROWS:
        getattr(examples, f"{tracker}_run")(tracked)(row, row["step"])
    assert server.calls == [opened[0], ("log", ROWS[0], 0), opened[1], ("log", ROWS[1], 1)]
