"""`cepo status` on a terminal: ten lines for a person, and an updated view until the run ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI

from cepo.cli import main, status
from cepo.run.folder import RunDir
from tests.helpers.runs import make_metrics, make_run, make_status
from tests.helpers.serving import served
from tests.helpers.terminals import on_a_terminal, plain


def ended_run(folder: Path, port: int, phase: str) -> RunDir:
    """A run of four steps without a trainer; its last status has `phase`."""
    run = make_run(folder, 0, "loop.steps=4", "eval.prompts=100")
    for step in range(4):
        held_out = {0: {"accuracy/eval_before": 0.5}, 3: {"accuracy/eval": 0.8}}.get(step, {})
        row = {key: value for key, value in make_metrics(step).items() if not key.startswith("accuracy/eval")}
        run.append(row | held_out | {"time/step_seconds": 30.0, "length/truncated_fraction": 0.25})
    (folder / "services.json").write_text(json.dumps({"http": {"trainer": f"http://127.0.0.1:{port}"}}))
    run.write_status(make_status(run, phase, 3, steps=4, queues={"rollout": 256}, policy_version=4))
    return run


def told(run: RunDir, *options: str) -> tuple[object, dict[str, str], str]:
    """The exit status, the lines by their first word, and the whole output."""
    code, screen = on_a_terminal(lambda: main(["status", str(run.path), *options]))
    rows = [line for line in plain(screen).splitlines() if line.strip()]
    return code, {line[:10].strip(): line[10:].strip() for line in rows}, screen


def test_a_run_that_is_done_is_ten_lines_without_queues(tmp_path: Path, free_port: Callable[[], int]) -> None:
    run = ended_run(tmp_path / "run", free_port(), "done")
    code, lines, _ = told(run)
    assert code == 0
    assert len(lines) <= 10
    assert lines["state"] == "done"
    assert lines["step"] == "4 of 4 done, policy v4"
    assert lines["before"] == "50.0% of 100 held-out problems, 95 % interval 40.4 to 59.6"
    assert lines["now"].startswith("80.0% of 100 held-out problems, 95 % interval 71.1 to 86.7")
    assert lines["training"].endswith("25% of the responses cut short")
    assert lines["waits for"] == "nothing; the run has ended"
    assert lines["next"].endswith(f" export {run.path} adapter")


def test_a_trainer_that_is_gone_is_shown_with_the_command_that_resumes_its_run(
    tmp_path: Path, free_port: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ended_run(tmp_path / "run", free_port(), "train")
    code, lines, _ = told(run)
    assert code == 2
    assert lines["state"] == "the trainer is gone; it last wrote: train"
    assert lines["next"].endswith(f" resume {run.path}")
    assert "does not answer" in capsys.readouterr().err


def test_json_on_a_terminal_is_what_a_pipe_gets(
    tmp_path: Path, free_port: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ended_run(tmp_path / "run", free_port(), "done")
    _, _, screen = told(run, "--json")
    assert main(["status", str(run.path)]) == 0
    assert screen == capsys.readouterr().out


def test_a_watched_run_is_shown_until_it_ends(
    tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "WATCH_SECONDS", 0.01)
    run = ended_run(tmp_path / "run", free_port(), "done")
    phases = iter(["loading", "rollout", "train", "done"])
    app = FastAPI()

    @app.get("/v1/status")
    def answer() -> dict[str, object]:
        return make_status(run, next(phases), 2, steps=6, queues={"rollout": 3, "teach": 1, "ready": 2})

    with served(app) as address:
        (run.path / "services.json").write_text(json.dumps({"http": {"trainer": address}}))
        code, _, screen = told(run, "--watch")
    text = plain(screen)
    assert code == 0
    assert next(phases, None) is None
    assert "waits for  3 groups in rollout, 1 group in teacher" in text
    assert "time       30.0 s a step, about 1 min 0 s left" in text
    assert f"page       {address}" in text
    assert text.rstrip().rpartition("state ")[2].strip().startswith("done")


def test_an_interval_holds_the_share_and_stays_within_0_and_1() -> None:
    for share in (0.0, 0.5, 1.0):
        low, high = status.wilson(share, 20)
        assert -1e-12 <= low <= share + 1e-12
        assert share - 1e-12 <= high <= 1 + 1e-12
