"""Locks of a run folder, so that one launcher and one trainer at a time use it.

A lock is a file that its process holds with `flock`, and that names the process. The kernel frees the lock when the
process ends, however it ends. A holder that ends normally also deletes the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cepo.errors import UserError
from cepo.net.connections import shown
from cepo.net.files import make_folder, overwrite, writing

IN_USE = 3
"""Exit code of a trainer whose run folder another process uses. A supervisor may try again, unlike after 2."""
TRIES = 3
TRY_SECONDS = 0.05
"""Another process may hold a lock for a moment while it checks that it is free."""


class FolderInUse(UserError):
    """Another process uses the run folder; the message names it."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file within the block.

    Raises:
        FolderInUse: another process holds it.
    """
    lock = _acquired(path)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # before the lock is freed, so that no other process holds the file that is deleted
        os.close(lock)


def check_free(*paths: Path) -> None:
    """Checks that no process holds one of the locks; creates nothing.

    Raises:
        FolderInUse: a process holds one.
    """
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderInUse(_in_use(path)) from None
            finally:
                os.close(lock)


def _acquired(path: Path) -> int:
    """The descriptor of the locked file, which holds the description of this process."""
    make_folder(path.parent)
    for _ in range(TRIES):
        with writing(path):
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_ino == path.stat().st_ino:  # otherwise its last holder has deleted the file
                overwrite(lock, path, json.dumps(_this_process()).encode() + b"\n")
                return lock
        os.close(lock)
        time.sleep(TRY_SECONDS)
    raise FolderInUse(_in_use(path))


def _this_process() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join([Path(sys.executable).name, *map(_without_password, sys.orig_argv[1:])]),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _without_password(word: str) -> str:
    return shown(word) if "://" in word else word


def _in_use(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']} ({holder['command']})"
    except (OSError, ValueError, KeyError, TypeError):  # the holder has not written it yet
        who = "another process"
    return f"{path.parent} is in use by {who}; wait until it ends or stop it, or give another --run-dir"
