"""Memory of this machine's GPUs, read from the driver's library, so that no CUDA context is needed.

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
    """The memory of each GPU; empty without a driver."""
    nvml = _loaded(library)
    count = ctypes.c_uint()
    if nvml is None or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    sizes = []
    for index in range(count.value):
        device, one = ctypes.c_void_p(), Memory()
        if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)):
            continue
        if not nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(one)):
            sizes.append(one)
    return sizes


@cache
def _loaded(library: str) -> Any:
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return None
    return None if nvml.nvmlInit_v2() else nvml
