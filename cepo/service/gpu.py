"""Memory of this machine's GPUs, read from NVIDIA's management library, so that no CUDA context is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pynvml


@dataclass(frozen=True)
class GpuMemory:
    """The memory of one GPU, in bytes."""

    total: int
    used: int


def memory() -> list[GpuMemory]:
    """The memory of each GPU that answers; empty without a driver."""
    return list(_memory())


def _memory() -> Iterator[GpuMemory]:
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            with contextlib.suppress(pynvml.NVMLError):
                info = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index))
                yield GpuMemory(info.total, info.used)
