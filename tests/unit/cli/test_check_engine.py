"""`cepo check --engine` without an engine: its estimate, and what it says of an engine that does not start."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from cepo.cli.preflight import engine_trial
from cepo.cli.preflight.checks import CHECKS, run_checks
from cepo.cli.preflight.preflight import Preflight
from cepo.errors import UserError
from tests.helpers.factories import make_config

FEW = ("data.limit=4", "data.eval=")
LOG = """(EngineCore pid=7) ERROR 11-30 10:00:00 [core.py:900] ValueError: No available memory for the cache blocks.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def tried(monkeypatch: pytest.MonkeyPatch, folder: Path, code: int, out: str, log: str = "") -> list[str]:
    """What the check says if the engine's process ends with a code and this output."""

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        assert command[1:] == ["-m", "services.rollout.trial"]
        assert options["env"]["CEPO_MAX_MODEL_LEN"] == "160"
        options["stderr"].write(log.encode())
        return subprocess.CompletedProcess(command, code, out.encode())

    monkeypatch.setattr("cepo.cli.preflight.engine_trial.subprocess.run", run)
    monkeypatch.setattr("cepo.cli.preflight.checks.CHECKS", {"data": CHECKS["data"]})
    findings = list(run_checks(Preflight(make_config(*FEW), folder, engine=True)))
    return [finding.text for finding in findings if finding.check == "engine"]


def test_the_hours_follow_from_the_measured_speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reply = '{"start_seconds": 9.4, "sample_seconds": 2.0, "tokens": 3200, "samples": 64}'
    assert tried(monkeypatch, tmp_path, 0, f"a warning\n{reply}\n") == [
        "vLLM started in 9 s: 1600 tokens a second over 64 responses of 50 tokens on average",
        engine_trial.estimate(make_config(*FEW), 1600.0, 50.0),
    ]
    config = make_config("loop.steps=100", "sampling.prompts=36", "sampling.samples=8")
    assert engine_trial.estimate(config, 1000.0, 250.0) == (
        "about 2 h of sampling: 100 steps x 36 prompts x 8 samples x 250 tokens / 1000 tokens a second; scoring, "
        "training and evaluation come on top"
    )


def test_an_engine_that_does_not_start_is_told_by_its_own_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r": ValueError: No available memory for the cache blocks$"):
        tried(monkeypatch, tmp_path, 1, "", LOG)
    with pytest.raises(UserError, match=r"^the engine does not start with .*: no tokenizer there$"):
        tried(monkeypatch, tmp_path, 2, "", "cepo rollout: no tokenizer there\n")


def test_a_run_on_pairs_needs_no_engine(tmp_path: Path) -> None:
    run = Preflight(make_config('algorithm={name="dpo"}'), tmp_path, engine=True)
    assert list(engine_trial.engine(run)) == [("ok", "none: the run trains on pairs")]
