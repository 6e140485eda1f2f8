"""Processes of this machine: those of services, and the memory they hold, a GPU's where there is one."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cepo.service import gpu

PARENT, SESSION, USER_TICKS, SYSTEM_TICKS = 1, 3, 11, 12
"""Where proc(5) has them, counted from the state, which follows the name."""
QUERY = ("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")


def stats() -> Iterator[tuple[int, list[str]]]:
    """Every process there is: its id, and the fields of its stat from the state on."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            yield int(file.parent.name), file.read_text().rpartition(")")[2].split()


def members(sessions: Mapping[str, int]) -> Iterator[tuple[str, int, list[str]]]:
    """Every process of these sessions: the session's name, the process and its stat."""
    names = {session: name for name, session in sessions.items()}
    for pid, fields in stats():
        if name := names.get(int(fields[SESSION])):
            yield name, pid, fields


def memory(processes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Bytes by name that these processes hold now.

    A GPU's as its driver counts them, where there is one: PyTorch and vLLM keep what they once took, so that after a
    run this is the most they had. Else proportional set sizes, which count once what processes share.
    """
    found: dict[str, int] = {}
    on_gpu = _asked() if gpu.memory() else None
    for name, pid in processes:
        found[name] = found.get(name, 0) + (_proportional(pid) if on_gpu is None else on_gpu.get(pid, 0))
    return found


def read(answer: str) -> dict[int, int]:
    """Bytes by process from what nvidia-smi says in MiB; on several GPUs their sum. It knows no size of some."""
    found: dict[int, int] = {}
    for line in answer.splitlines():
        pid, _, size = line.partition(",")
        if size.strip().isdigit():
            found[int(pid)] = found.get(int(pid), 0) + int(size) * 2**20
    return found


def _asked() -> dict[int, int]:
    return read(subprocess.run(QUERY, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it ended meanwhile
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
