"""One launcher and one trainer at a time use a run folder, and a dead one holds nothing."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cepo.errors import UserError
from cepo.run.lock import FolderInUse, check_free, locked

HOLD = """
import sys
from pathlib import Path
from cepo.run.lock import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock."""
    command = [sys.executable, "-c", HOLD, str(path), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_process_that_holds_a_folder_is_named_and_its_death_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "launcher.lock"
    with holder(path, "redis://:secret@host:1/0") as process:
        for attempt in (lambda: locked(path).__enter__(), lambda: check_free(path)):
            with pytest.raises(FolderInUse) as error:
                attempt()
            assert re.fullmatch(
                rf"{path.parent} is in use by process {process.pid} on {socket.gethostname()} since "
                r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+ \(python\S* -c .* redis://host:1/0\); wait until it "
                "ends or stop it, or give another --run-dir",
                str(error.value),
                re.DOTALL,
            )
    process.wait()
    check_free(path)
    with locked(path), pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
        check_free(path)


def test_a_lock_that_is_free_leaves_no_file_and_a_check_makes_none(tmp_path: Path) -> None:
    path = tmp_path / "trainer.lock"
    check_free(path)
    with locked(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_has_not_written_its_name_is_another_process(tmp_path: Path) -> None:
    path = tmp_path / "trainer.lock"
    with locked(path):
        path.write_text("")
        with pytest.raises(FolderInUse, match=f"{tmp_path} is in use by another process; wait"), locked(path):
            pass
