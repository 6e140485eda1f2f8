"""GPU memory without a GPU, with a test library that has the functions of NVML."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cepo.service import gpu

STAND_IN = """
typedef struct { unsigned long long total, free, used; } memory;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(long)(index + 1); return index == 1;
}
int nvmlDeviceGetMemoryInfo(void *device, memory *found) {
    found->total = 80ull << 30; found->used = (unsigned long long)(long)device << 30;
    found->free = found->total - found->used; return 0;
}
"""


def test_without_a_driver_there_is_none() -> None:
    assert gpu.memory("libnothing-of-this-name.so.1") == []


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_every_gpu_that_answers_is_read(tmp_path: Path) -> None:
    source, library = tmp_path / "nvml.c", tmp_path / "libnvml.so"
    source.write_text(STAND_IN)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    found = gpu.memory(str(library))
    assert [(one.total >> 30, one.free >> 30, one.used >> 30) for one in found] == [(80, 79, 1), (80, 77, 3)]
