"""The processes of services and the memory that they use, on a GPU if there is one."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cepo.service import gpu

PARENT, SESSION, USER_TICKS, SYSTEM_TICKS = 1, 3, 11, 12
"""Field positions of proc(5), counted from the state, which follows the name."""
QUERY = ("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")


def stats() -> Iterator[tuple[int, list[str]]]:
    """All processes: id and the fields of /proc/ID/stat from the state on."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has exited
            yield int(file.parent.name), file.read_text().rpartition(")")[2].split()


def members(sessions: Mapping[str, int]) -> Iterator[tuple[str, int, list[str]]]:
    """All processes of these sessions: session name, process id, stat fields."""
    names = {session: name for name, session in sessions.items()}
    for pid, fields in stats():
        if name := names.get(int(fields[SESSION])):
            yield name, pid, fields


def memory(processes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Bytes that these processes use, by name.

    On a GPU, as the driver counts them: PyTorch and vLLM keep memory that they have allocated, so after a run this is
    their peak. Otherwise proportional set sizes, which count shared pages once.
    """
    found: dict[str, int] = {}
    on_gpu = _asked() if gpu.memory() else None
    for name, pid in processes:
        found[name] = found.get(name, 0) + (_proportional(pid) if on_gpu is None else on_gpu.get(pid, 0))
    return found


def read(answer: str) -> dict[int, int]:
    """Bytes by process from the output of nvidia-smi in MiB, summed over GPUs; some processes have no size there."""
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
        return 0  # the process has exited
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
