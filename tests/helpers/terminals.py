"""A pseudo-terminal, for output that is written for a person."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Callable
from unittest import mock

from cepo.net.environment import child_environment


def on_a_terminal(call: Callable[[], object], columns: int = 100) -> tuple[object, str]:
    """What a call returns, and what it printed to standard output, which is a terminal of 24-bit colour."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
    pieces: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the writer is closed
            while piece := os.read(reader, 4096):
                pieces.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    variables = child_environment({"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(columns)})
    for name in ("NO_COLOR", "LINES"):
        variables.pop(name, None)
    try:
        with (
            os.fdopen(writer, "w") as screen,
            mock.patch.object(sys, "stdout", screen),
            mock.patch.dict("os.environ", variables, clear=True),
        ):
            returned = call()
    finally:
        thread.join(timeout=10)
        os.close(reader)
    return returned, b"".join(pieces).decode().replace("\r\n", "\n")


def plain(text: str) -> str:
    """Terminal output without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
