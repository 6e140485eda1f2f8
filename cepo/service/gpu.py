"""Memory of this machine's GPUs from the driver's own library, so that a process needs no CUDA context to ask.

Functions and structures: NVIDIA Management Library, https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

LIBRARY = "libnvidia-ml.so.1"


class Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))
    total: int
    free: int
    used: int


def memory(library: str = LIBRARY) -> list[Memory]:
    """One entry a GPU; empty without a driver."""
    nvml = _loaded(library)
    count = ctypes.c_uint()
    if nvml is None or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    found = []
    for index in range(count.value):
        device, one = ctypes.c_void_p(), Memory()
        if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)):
            continue
        if not nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(one)):
            found.append(one)
    return found


@cache
def _loaded(library: str) -> Any:
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return None
    return None if nvml.nvmlInit_v2() else nvml
