"""GPU memory without a GPU, with a stand-in for NVIDIA's management library."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cepo.net.environment import child_environment
from cepo.service import gpu

STAND_IN = """
typedef struct { unsigned long long total, free, used; } memory;
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(long)(index + 1); return index == 1;
}
int nvmlDeviceGetMemoryInfo(void *device, memory *info) {
    info->total = 80ull << 30; info->used = (unsigned long long)(long)device << 30;
    info->free = info->total - info->used; return 0;
}
"""
READ = "from cepo.service import gpu; print([(each.total >> 30, each.used >> 30) for each in gpu.memory()])"


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
def test_without_a_driver_there_is_none() -> None:
    assert gpu.memory() == []


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_every_gpu_that_answers_is_read(tmp_path: Path) -> None:
    source, library = tmp_path / "nvml.c", tmp_path / "libnvidia-ml.so.1"
    source.write_text(STAND_IN)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    variables = child_environment({"LD_LIBRARY_PATH": str(tmp_path)})
    reading = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, check=True, env=variables)
    assert reading.stdout.strip() == "[(80, 1), (80, 3)]"
