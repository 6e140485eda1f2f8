"""How a trainer process finds its rank, and how the other processes end once one of them has died."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cepo.errors import UserError
from cepo.net.environment import child_environment
from cepo.net.torchrun import Place, node_rank
from cepo.run.folder import RunDir
from services.trainer.__main__ import main
from services.trainer.learning.processes import start_ranks
from tests.helpers.factories import make_config

IDLE = """
import os, time
from cepo.net.torchrun import Place
from services.trainer.learning.ranks import DistributedRanks
place = Place.from_environment()
DistributedRanks(place).all_gather(None)
if place.rank == 1:
    os._exit(9)
time.sleep(60)
"""
"""A process that enters no collective, as while a step is sampled; rank 1 dies."""


def test_a_place_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Place.from_environment() is None
    for name, value in Place(rank=5, local_rank=1, size=8).to_environment().items():
        monkeypatch.setenv(name, value)
    assert Place.from_environment() == Place(rank=5, local_rank=1, size=8)


@pytest.mark.parametrize(("name", "value"), [("LOCAL_RANK", None), ("WORLD_SIZE", "two")])
def test_a_place_that_is_not_whole_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str | None) -> None:
    for variable, number in (Place(0, 0, 2).to_environment() | {name: value}).items():
        if number is not None:
            monkeypatch.setenv(variable, number)
    with pytest.raises(
        UserError, match=f"^RANK is set, and {name}='{value or ''}' is not a number; start the trainer with"
    ):
        Place.from_environment()


def test_a_trainer_without_a_run_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err == ("cepo trainer: give the folder of a run: python -m services.trainer RUN_DIR\n")


def test_machines_are_numbered_by_torchruns_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert node_rank() is None
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "trainer-0"}.items():
        monkeypatch.setenv(f"PET_{name}", value)
    assert node_rank() == 1


@pytest.mark.parametrize(("name", "value"), [("NNODES", "1:2"), ("NODE_RANK", "2"), ("MASTER_ADDR", "")])
def test_machines_that_could_not_meet_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for variable, said in ({"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "trainer-0"} | {name: value}).items():
        monkeypatch.setenv(f"PET_{variable}", said)
    with pytest.raises(UserError, match=f"PET_{name}='{value}'.*a trainer over several machines needs their number"):
        node_rank()


def test_a_colocated_teacher_is_refused_where_torchrun_splits_its_base(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable, number in Place(0, 0, 2).to_environment().items():
        monkeypatch.setenv(variable, number)
    with pytest.raises(UserError, match="the 2 processes of torchrun split between them; set it to"):
        start_ranks(RunDir(tmp_path), make_config("engine.teacher=colocated"))


def test_processes_of_several_machines_end_together(free_port: Callable[[], int]) -> None:
    """Rank 1 of three dies; the other two, which are in no collective, end within the heartbeat timeout."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", IDLE],
            env=child_environment(meeting | Place(rank, 0, 3).to_environment()),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        said = [process.communicate(timeout=40)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, 9, 1]
    for rank in (0, 2):
        assert f"process {rank + 1} of 3 lost another process (" in said[rank]
