"""Files and folders that other processes read: written atomically, and on disk before they appear.

A reader finds the old content or the new content, also after a crash or a power cut: the content is written under a
hidden temporary name and synced, then renamed, and then the parent folder is synced.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file, or replaces it. Several processes may write the same file."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(content)
    _sync(scratch)
    scratch.rename(path)
    _sync(path.parent)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty temporary folder, which becomes `folder` after the block. It is deleted if the block raises.

    One process at a time may write a folder; the temporary folder of a process that was killed is reused.
    """
    scratch = folder.with_name(f".{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        for path in (*scratch.iterdir(), scratch):
            _sync(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
