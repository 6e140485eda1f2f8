"""Small and read-only disks: a tmpfs where the machine allows to mount one."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@functools.cache
def _refusal() -> str:
    """Why this process may not mount a tmpfs; empty if it may."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as mounted:
        mounts = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]
        try:
            done = subprocess.run(mounts, capture_output=True, text=True)
        except FileNotFoundError as error:
            return str(error)
        if done.returncode == 0:
            mounted.callback(subprocess.run, ["umount", "--lazy", folder], check=True)
        return done.stderr.strip()


@contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """Mounts a tmpfs of a size on a folder within the block; skips the test where mounting is not allowed."""
    if reason := _refusal():
        pytest.skip(f"a tmpfs cannot be mounted here: {reason}")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """Makes a small disk read-only within the block."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Writes a file that takes all free space; removing it frees the disk."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return ballast
