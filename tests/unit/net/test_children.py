"""A child process ends with its parent, however the parent ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from tests.helpers.processes import ends

FAMILY = """
import multiprocessing, sys, time
from cepo.net.processes import die_with_parent

def child():
    die_with_parent()
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=child).start()
    time.sleep(600)
"""


def test_a_child_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "family.py"
    script.write_text(FAMILY)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert ends(child)
