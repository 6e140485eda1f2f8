"""The growth of a process: memory by count, and tasks and connections that stay."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence

import psutil


def resident_mib(pids: Sequence[int] = ()) -> float:
    """Resident memory of processes in MiB; default: this one."""
    gc.collect()
    processes = [psutil.Process(pid) for pid in pids] or [psutil.Process()]
    return sum(process.memory_info().rss for process in processes) / 2**20


def slope(samples: Sequence[float]) -> float:
    """The growth per sample: the slope of the least-squares line. Example: slope([1.0, 3.0, 5.0]) == 2.0."""
    middle, mean = (len(samples) - 1) / 2, sum(samples) / len(samples)
    spread = sum((at - middle) ** 2 for at in range(len(samples)))
    return sum((at - middle) * (each - mean) for at, each in enumerate(samples)) / spread


def connections() -> int:
    """The open TCP connections of this process, listeners left out."""
    return sum(each.status != psutil.CONN_LISTEN for each in psutil.Process().net_connections("tcp"))


async def settled(tasks: int, seconds: float = 30.0) -> bool:
    """Waits until at most `tasks` tasks run; False after `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while len(asyncio.all_tasks()) > tasks:
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True
