"""Child processes that can be killed at any moment: they run code that may loop, exhaust memory or crash."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from types import ModuleType
from typing import Any

STACK_BYTES = 8 * 2**20
_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED: list[str] = []
_MAIN = threading.Lock()


def preload(module: str) -> None:
    """Makes the fork server import a module before the first child starts: children then share its memory."""
    _PRELOADED.append(module)
    _CONTEXT.set_forkserver_preload(_PRELOADED)


def confine(memory_bytes: int) -> None:
    """Limits the memory of this process, a child, and leaves Ctrl-C to its parent, which drains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, STACK_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class KillableProcess:
    """One child process and the connection to it, driven from asyncio."""

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        """Creates the handle; `spawn` starts the process.

        Args:
            name: of the process, for lists of processes.
            target: a function of a module that the child can import; it gets its end of the connection and `arguments`.
        """
        self._name = name
        self._target = target
        self._arguments = arguments
        self._process: ForkServerProcess | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None while no process is alive."""
        return self._process.pid if self._process is not None and self._process.is_alive() else None

    @property
    def connection(self) -> Connection:
        """This process's end of the connection; there is one while a process runs."""
        assert self._connection is not None
        return self._connection

    async def spawn(self) -> None:
        """Starts a process in place of the previous one, which is killed."""
        self.kill()
        self._process, self._connection = await asyncio.to_thread(self._forked)

    async def readable(self) -> None:
        """Waits until the child has begun a message or has ended."""
        loop, descriptor = asyncio.get_running_loop(), self.connection.fileno()
        arrived = asyncio.Event()
        loop.add_reader(descriptor, arrived.set)
        try:
            await arrived.wait()
        finally:  # the connection may be closed by now, and its descriptor reused
            loop.remove_reader(descriptor)

    def kill(self) -> None:
        """Kills the process at once."""
        if self._process is not None and self._connection is not None:
            self._process.kill()
            self._connection.close()
        self._process = self._connection = None

    def _forked(self) -> tuple[ForkServerProcess, Connection]:
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=self._target, args=(theirs, *self._arguments), name=self._name, daemon=True)
        with _without_main():
            process.start()
        theirs.close()
        return process, ours


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hides the module `__main__`, which a child would otherwise run again before its target.

    A script that calls `cepo.credit` and has no `if __name__ == "__main__"` would start children in its children.
    """
    with _MAIN:
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
