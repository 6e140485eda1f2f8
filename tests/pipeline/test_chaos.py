"""A deterministic run that is killed at random, or whose disk gets full, ends with the bytes of an undisturbed one.

`test_training.py` kills each process once in every run of the suite; `tests/unit/net/test_disks.py` fills the disk of
every writer.
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

from tests.helpers.disks import fill, small_disk
from tests.pipeline.support import TINY, TOOLS, command, kill, rows, run, started, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(900)]
STEPS = 6
SERVICES = ("rollout", "verifier", "teacher", "redis", "trainer")
KILLS = 4
"""Of services, between two kills of the launcher; five deaths of one service in two minutes would end the run."""
LAUNCHES = 3
PAUSE_SECONDS = 8.0
FULL = "No space left on device; free space on its disk, then start again; a run continues with --resume"
FULL_DISK_SECONDS = 60.0
"""Many times what a run takes to end once its disk is full, on a busy machine."""


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


@pytest.mark.parametrize("after", [0, 2])
def test_a_run_whose_disk_was_full_continues_to_the_same_bytes(
    tmp_path: Path, undisturbed: Callable[[Path], dict[str, str]], after: int
) -> None:
    """The disk gets full while the services start, or between two steps."""
    with small_disk(tmp_path / "disk", "320m") as disk:
        run_dir = disk / "run"
        with run(run_dir) as process:
            wait_until(lambda: (run_dir / "services.json").exists() and len(rows(run_dir)) >= after, process)
            ballast, filled = fill(disk), time.monotonic()
            printed, _ = process.communicate()
        assert time.monotonic() - filled < FULL_DISK_SECONDS
        assert process.returncode == 2, printed
        last = printed.splitlines()[-1]
        assert last.startswith(f"cepo: {disk}"), printed
        assert last.endswith(FULL), printed
        assert len(rows(run_dir)) < STEPS
        ballast.unlink()
        with run(run_dir, "--resume") as process:
            printed, _ = process.communicate()
        assert process.returncode == 0, printed
        assert [row["step"] for row in rows(run_dir)] == list(range(STEPS))
        assert adapters(run_dir) == undisturbed(TINY)
