"""A deterministic run under random kills of every process, the launcher too, ends with the bytes of an undisturbed one.

`test_training.py` kills each process once in every run of the suite.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from tests.pipeline.support import TINY, TOOLS, command, kill, rows, started, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(900)]
STEPS = 6
SERVICES = ("rollout", "verifier", "teacher", "redis", "trainer")
KILLS = 4
"""Of services, between two kills of the launcher; five deaths of one service in two minutes would end the run."""
LAUNCHES = 3
PAUSE_SECONDS = 8.0


def adapters(run_dir: Path) -> dict[str, str]:
    """The sha256 of the weights of every version."""
    files = sorted(run_dir.glob("adapters/v*/adapter_model.safetensors"))
    return {file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, str]]:
    """The adapters of an undisturbed run of a file."""

    @cache
    def ended(file: Path) -> dict[str, str]:
        run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
        with started(command(run_dir, file=file)) as process:
            printed, _ = process.communicate()
        assert process.returncode == 0, printed
        return adapters(run_dir)

    return ended


def disturb(process: subprocess.Popen[str], run_dir: Path, chance: random.Random) -> list[str]:
    """Kills services at random moments while the run works; returns their names."""
    killed = []
    for _ in range(KILLS):
        until = time.monotonic() + chance.uniform(0.0, PAUSE_SECONDS)
        while time.monotonic() < until and process.poll() is None:
            time.sleep(0.02)
        name = chance.choice(SERVICES)
        with suppress(AssertionError, ProcessLookupError):  # it is being restarted
            kill(name, run_dir)
            killed.append(name)
    return killed


@pytest.mark.parametrize(("seed", "file"), [*((seed, TINY) for seed in range(5)), (5, TOOLS), (6, TOOLS)])
def test_random_kills_of_every_process_change_no_byte(
    tmp_path: Path, undisturbed: Callable[[Path], dict[str, str]], seed: int, file: Path
) -> None:
    run_dir, chance, killed = tmp_path / "run", random.Random(seed), []
    for launch in range(LAUNCHES):
        with started(command(run_dir, *["--resume"] * (launch > 0), file=file)) as process:
            before = len(rows(run_dir))
            wait_until(lambda: len(rows(run_dir)) > before or len(rows(run_dir)) == STEPS, process)  # noqa: B023
            killed += disturb(process, run_dir, chance)
            if launch < LAUNCHES - 1 and process.poll() is None:
                process.kill()  # the launcher; its children end with it
                process.wait()
                killed.append("launcher")
                continue
            printed, _ = process.communicate()
        assert process.returncode == 0, (killed, printed)
        break
    metrics = rows(run_dir)
    assert [row["step"] for row in metrics] == list(range(STEPS)), killed
    assert {(row["groups/total"], row["groups/failed"]) for row in metrics} == {(6.0, 0.0)}, killed
    assert adapters(run_dir) == undisturbed(file), killed
