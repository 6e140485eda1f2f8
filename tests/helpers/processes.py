"""Free ports, a real Redis, and waiting for processes to end."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import psutil

from cepo.net.connections import free_ports
from cepo.run import embedded


def unused_port() -> int:
    """A loopback port that is not in use and stays free until the test binds it."""
    return free_ports(1)[0]


def ends(process: psutil.Process, seconds: float = 60.0) -> bool:
    """Waits until a process that is not a child of this one has ended, reaped or not; False after `seconds`."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
    return True


class RedisServer:
    """A redis-server with an append-only file, running within `with`; a test may kill and restart it."""

    def __init__(self, folder: Path, password: str = "") -> None:
        port = unused_port()
        self.url = f"redis://{f':{password}@' if password else ''}127.0.0.1:{port}/0"
        self.port = port
        options = f"--port {port} --bind 127.0.0.1 --dir {folder} --appendonly yes --appendfsync always"
        self._command = [str(embedded.program()), *options.split(), "--save", "", "--requirepass", password]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)

    def kill(self) -> None:
        """Ends the server as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Within the block the server is alive but answers nothing, so its clients wait."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False
