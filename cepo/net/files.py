"""Files and folders of the product: written atomically, and on disk before they appear.

A reader finds the old content or the new content, also after a crash, a power cut or on a full disk: the content is
written under a hidden temporary name and synced, then renamed, and then the parent folder is synced. Every module that
writes a file does it through this one, so an unwritable path is always one line with the path and the fix.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from cepo.errors import CepoError, StorageError

PROBE_BYTES = 2**16
_DISK = {
    errno.ENOSPC: "free space on its disk, then start again; a run continues with --resume",
    errno.EDQUOT: "free space in the quota and start again",
    errno.EFBIG: "raise the limit of the file size (ulimit -f)",
    errno.EROFS: "give a folder on a disk that is not read-only",
}
_FIXES = _DISK | dict.fromkeys((errno.EACCES, errno.EPERM), "make it writable for this user, or give another path")
_OTHER_FIX = "give another path, or make this one usable"


@contextmanager
def writing(path: Path, *, disk_only: bool = False) -> Iterator[None]:
    """Turns an OSError of the block, or a full disk that another library reports, into a StorageError with the path.

    Args:
        disk_only: whether to leave errors that are no fault of the disk as they are, because the block does more than
            write this path.

    Raises:
        StorageError: the path cannot be written. Example: "run/metrics.jsonl cannot be written: No space left on
            device; free space on its disk, then start again; a run continues with --resume".
    """
    try:
        yield
    except CepoError:
        raise
    except Exception as error:
        number = _number(error)
        if number is None or (disk_only and number not in _DISK):
            raise
        fix = _FIXES.get(number, _OTHER_FIX)
        raise StorageError(f"{path} cannot be written: {os.strerror(number)}; {fix}") from error


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Makes a folder and its parents, unless they exist.

    Raises:
        StorageError: the folder cannot be made.
    """
    with writing(folder):
        folder.mkdir(mode, parents=True, exist_ok=True)


def replace_file(path: Path, content: bytes | str, mode: int = 0o666) -> None:
    """Writes a file, or replaces it; text is written as UTF-8. Several processes may write the same file.

    Args:
        mode: the permissions of the file, from which the umask is taken away. With 0o600, only its owner can ever
            read it.

    Raises:
        StorageError: the file cannot be written; it keeps its old content.
    """
    if not path.is_file() and path.exists():  # a device or a pipe, such as /dev/stdout, is written in place
        with writing(path), path.open("wb") as device:
            device.write(_bytes(content))
        return
    target = path.resolve() if path.is_symlink() else path
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    with writing(path):
        try:
            with open(scratch, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                file.write(_bytes(content))
                file.flush()
                os.fsync(file.fileno())
            scratch.rename(target)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        _sync(target.parent)


def overwrite(file: int, path: Path, content: bytes) -> None:
    """Replaces the content of an open file in place, because its lock belongs to this very file.

    Raises:
        StorageError: the file cannot be written.
    """
    with writing(path):
        os.ftruncate(file, 0)
        os.pwrite(file, content, 0)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty temporary folder, which becomes `folder` after the block. It is deleted if the block raises.

    One process at a time may write a folder; the temporary folder of a process that was killed is reused.

    Raises:
        StorageError: the folder or a file in it cannot be written; the old folder stays as it was.
    """
    scratch = folder.with_name(f".{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    with writing(folder):
        scratch.mkdir(parents=True)
    try:
        with writing(folder, disk_only=True):
            yield scratch
        with writing(folder):
            for path in (*scratch.rglob("*"), scratch):
                _sync(path)
                if path.is_file():  # safetensors makes files that only their owner can read
                    path.chmod(path.stat().st_mode | (scratch.stat().st_mode & 0o666))
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
            _sync(folder.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def append_lines(path: Path, lines: bytes) -> None:
    r"""Appends whole lines to a file and syncs it. A line that an earlier crash cut short is removed first.

    Args:
        lines: lines that each end with a newline, such as b'{"step": 3}\n'.

    Raises:
        StorageError: the file cannot be written; none of the lines is in it.
    """
    with writing(path), path.open("ab+", buffering=0) as file:
        size = _whole_bytes(file)
        file.truncate(size)
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(size)
            raise


def open_log(path: Path, *, fresh: bool = False) -> BinaryIO:
    """Opens a log for the output of a child process, to append to it.

    Args:
        fresh: whether to drop what the file holds.

    Raises:
        StorageError: the file cannot be opened.
    """
    with writing(path):
        return path.open("wb" if fresh else "ab")


def check_writable(folder: Path) -> None:
    """Checks that files can be written in a folder, by writing one and removing it.

    Raises:
        StorageError: the disk is full or read-only, or the folder may not be written.
    """
    probe = folder / f".probe.{os.getpid()}"
    with writing(folder):
        try:
            with probe.open("wb") as file:
                file.write(bytes(PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)


def _bytes(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _whole_bytes(file: FileIO) -> int:
    """The size of a file without a last line that has no newline."""
    end = file.seek(0, os.SEEK_END)
    at = end
    while at > 0:
        block = max(0, at - PROBE_BYTES)
        file.seek(block)
        newline = file.read(at - block).rfind(b"\n")
        if newline >= 0:
            return block + newline + 1
        at = block
    return 0


def _number(error: BaseException) -> int | None:
    """The errno of an error or of its causes. Libraries in C++ and Rust keep only its text."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno
        for number in (errno.ENOSPC, errno.EROFS):
            if os.strerror(number) in str(cause):
                return number
        cause = cause.__cause__ or cause.__context__
    return None


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
