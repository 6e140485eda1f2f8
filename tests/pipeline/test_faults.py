"""Faults of a real run: an engine that cannot start, a Redis that stalls, training that diverges."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.pipeline.support import command, held, kill, rows, run, started, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(600)]
STALL_SECONDS = 65.0
ENGINE_SECONDS = 60.0
"""Several times what vLLM takes to start on a quiet machine."""


NO_NETWORK = {"GLOO_SOCKET_IFNAME": "nonsense"}
"""Ends vLLM's engine process while it starts; no check before a run can know of it."""


def test_an_engine_that_cannot_start_ends_the_run_with_its_own_error(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "run" / "logs" / "rollout.log"
    with run(run_dir, **NO_NETWORK) as process:
        printed, _ = process.communicate()
    last = printed.splitlines()[-1]
    assert last.startswith("cepo: rollout died twice in the same way (exit 1): RuntimeError: [enforce fail at ")
    assert last.endswith(f"Unable to find address for: nonsense; see {log}")
    assert process.returncode == 1
    assert log.read_text().count("\nRuntimeError: Engine core initialization failed") == 2, "it was started twice"


def test_one_signal_drains_a_run_whose_engine_cannot_start(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "run" / "logs" / "rollout.log"
    with run(run_dir, **NO_NETWORK) as process:
        wait_until(lambda: log.is_file() and log.read_text().count("See root cause above") > 0, process)
        process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        process.communicate()
    assert time.monotonic() - begin < ENGINE_SECONDS


def test_a_redis_that_stalls_for_a_minute_does_not_end_a_run_whose_verifier_was_killed(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with run(run_dir) as process:
        wait_until(lambda: len(rows(run_dir)) >= 1, process)
        with held(run_dir):
            kill("verifier", run_dir)
            deadline = time.monotonic() + STALL_SECONDS
            while time.monotonic() < deadline:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.5)
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert "does not answer; the run waits up to 300 s" in printed
    assert "answers again; the run continues" in printed
    assert {(row["groups/total"], row["groups/failed"]) for row in rows(run_dir)} == {(6.0, 0.0)}


def test_a_run_that_diverges_ends_with_advice_that_works(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with run(run_dir, "--set", "optim.lr=1e30") as process:
        printed, _ = process.communicate()
    assert process.returncode == 2
    assert printed.splitlines()[-1].startswith("cepo: training has diverged: under version 1 log-probs are nan. Lower")
    resume = [*command(run_dir)[:3], "resume", str(run_dir), "--set", "optim.lr=1e-3"]
    with started([*resume, "--allow-change", "optim.lr"]) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert [row["step"] for row in rows(run_dir)] == list(range(6))
    assert json.loads((run_dir / "changes.jsonl").read_text())["key"] == "optim.lr"


def test_an_engine_that_is_killed_twice_within_a_step_is_restarted(tmp_path: Path) -> None:
    """A kill is no error of the engine: it does not count as dying twice in the same way."""
    from tests.pipeline.support import engine_of, pid_of

    run_dir = tmp_path / "run"
    with run(run_dir) as process:
        wait_until(lambda: len(rows(run_dir)) >= 1, process)
        for _ in range(2):
            killed = engine_of(pid_of("rollout", run_dir))
            killed.kill()
            wait_until(lambda: not psutil.pid_exists(killed.pid) and _engine_runs(run_dir), process)  # noqa: B023
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert {(row["groups/total"], row["groups/failed"]) for row in rows(run_dir)} == {(6.0, 0.0)}


def _engine_runs(run_dir: Path) -> bool:
    from tests.pipeline.support import engine_of, pid_of

    try:
        return engine_of(pid_of("rollout", run_dir)).is_running()
    except (AssertionError, ValueError, psutil.NoSuchProcess):
        return False
