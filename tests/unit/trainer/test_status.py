"""The status of a run and the row of a step: phases, durations and the peaks of the queues."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cepo.run.folder import RunDir
from services.trainer.status import Status, StepRow
from tests.helpers.factories import POLICY, make_task


def make_status(tmp_path: Path) -> Status:
    folder = RunDir(tmp_path / "run")
    folder.path.mkdir()
    return Status(folder, steps=9)


def written(status: Status) -> dict[str, object]:
    shown: dict[str, object] = json.loads(status.folder.status.read_text())
    return shown


def test_a_phase_sets_the_status_and_measures_its_time(tmp_path: Path) -> None:
    status = make_status(tmp_path)
    row = StepRow(status, make_task(step=4, policy=POLICY), {"accuracy/eval_before": 0.5})
    with row.phase("rollout"):
        assert (written(status)["phase"], written(status)["step"]) == ("rollout", 4)
        row.add({"reward/mean": 1.0})
    with row.phase("train"):
        assert written(status)["phase"] == "train"
    metrics = row.ended()
    assert {key for key in metrics if not key.startswith("time/")} == {
        "step",
        "policy_version",
        "accuracy/eval_before",
        "reward/mean",
    }
    assert (metrics["step"], metrics["policy_version"]) == (4, POLICY.version)
    assert metrics["time/eval_seconds"] == 0.0
    phases = metrics["time/rollout_seconds"] + metrics["time/train_seconds"]
    assert 0 < phases <= metrics["time/step_seconds"]


def test_a_phase_that_fails_is_not_in_the_row(tmp_path: Path) -> None:
    status = make_status(tmp_path)
    row = StepRow(status, make_task(), {})
    with pytest.raises(ValueError, match="broken"), row.phase("train"):
        raise ValueError("broken")
    assert status.phase == "train"
    assert "time/train_seconds" not in row.ended()


def test_the_peak_of_a_queue_is_that_since_the_last_row(tmp_path: Path) -> None:
    status = make_status(tmp_path)
    status.queues, status._peaks = {"rollout": 2}, {"rollout": 7}
    assert status.take_peaks() == {"queue/rollout_max": 7.0}
    assert status.take_peaks() == {"queue/rollout_max": 2.0}
