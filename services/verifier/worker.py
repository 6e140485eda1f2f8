"""One killable grader process, driven from asyncio."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

from cepo.errors import UserError
from services.verifier import grader
from services.verifier.functions import Call
from services.verifier.grader import Comparison, Finding

START_SECONDS = 60.0
_CONTEXT = multiprocessing.get_context("forkserver")  # a replacement is forked from a process that has sympy loaded
_CONTEXT.set_forkserver_preload(["services.verifier.warm"])


class Worker:
    """Runs one process at a time: starts it on demand, and kills it if an item times out or fails."""

    def __init__(self, deadline_seconds: float, memory_bytes: int, functions: tuple[str, ...] = ()) -> None:
        self._deadline_seconds = deadline_seconds
        self._memory_bytes = memory_bytes
        self._functions = functions
        self._process: ForkServerProcess | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None while no process is alive."""
        return self._process.pid if self._process is not None and self._process.is_alive() else None

    async def start(self) -> None:
        """Starts the process if none is alive, and waits until it is warm.

        Raises:
            RuntimeError: the process does not start.
            UserError: a reward function cannot be loaded.
        """
        if self.pid is not None:
            return
        self.kill()
        self._process, self._connection = await asyncio.to_thread(self._spawn)
        try:
            async with asyncio.timeout(START_SECONDS):
                ready = await self._receive()
        except (TimeoutError, EOFError, OSError) as error:
            self.kill()
            raise RuntimeError("a grader process does not start") from error
        except BaseException:
            self.kill()  # cancelled before the process was warm
            raise
        if ready.error:
            self.kill()
            raise UserError(ready.error)

    async def run(self, asked: Comparison | Call) -> Finding:
        """Runs a comparison or a reward function in the process; an exception's name is in `Finding.error`.

        Raises:
            TimeoutError: the deadline passed; the process was killed.
            EOFError, OSError: the process died.
        """
        await self.start()
        assert self._connection is not None
        try:
            self._connection.send(asked)
            try:
                async with asyncio.timeout(self._deadline_seconds):
                    finding = await self._receive()
            except TimeoutError:
                if not self._connection.poll():
                    raise
                finding = self._connection.recv()  # the reply was in time; this process read it late
        except BaseException:
            self.kill()  # the next reply would belong to this item
            raise
        if finding.error == MemoryError.__name__:
            self.kill()  # memory that the process still holds would be missing for the next item
        return finding

    def kill(self) -> None:
        """Kills the process at once."""
        if self._process is not None and self._connection is not None:
            self._process.kill()
            self._connection.close()
        self._process = self._connection = None

    def _spawn(self) -> tuple[ForkServerProcess, Connection]:
        ours, theirs = _CONTEXT.Pipe()
        arguments = (theirs, self._deadline_seconds, self._memory_bytes, self._functions)
        process = _CONTEXT.Process(target=grader.serve, args=arguments, name="grader", daemon=True)
        process.start()
        theirs.close()
        return process, ours

    async def _receive(self) -> Finding:
        connection = self._connection
        assert connection is not None
        loop, descriptor = asyncio.get_running_loop(), connection.fileno()
        readable = asyncio.Event()
        loop.add_reader(descriptor, readable.set)
        try:
            await readable.wait()
        finally:  # the connection may be closed by now, and its descriptor reused
            loop.remove_reader(descriptor)
        return connection.recv()
