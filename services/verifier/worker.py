"""One killable grader process, driven from asyncio."""

from __future__ import annotations

import asyncio

from cepo.errors import UserError
from cepo.service.killable import KillableProcess, preload
from services.verifier import grader
from services.verifier.functions import Call
from services.verifier.grader import Comparison, Finding

START_SECONDS = 60.0
preload("services.verifier.warm")  # a replacement is forked from a process that has sympy loaded


class Worker(KillableProcess):
    """Runs one process at a time: starts it on demand, and kills it if an item times out or fails."""

    def __init__(self, deadline_seconds: float, memory_bytes: int, functions: tuple[str, ...] = ()) -> None:
        super().__init__("grader", grader.serve, deadline_seconds, memory_bytes, functions)
        self._deadline_seconds = deadline_seconds

    async def start(self) -> None:
        """Starts the process if none is alive, and waits until it is warm.

        Raises:
            RuntimeError: the process does not start.
            UserError: a reward function cannot be loaded.
        """
        if self.pid is not None:
            return
        await self.spawn()
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
        try:
            self.connection.send(asked)
            try:
                async with asyncio.timeout(self._deadline_seconds):
                    finding = await self._receive()
            except TimeoutError:
                if not self.connection.poll():
                    raise
                finding = self.connection.recv()  # the reply was in time; this process read it late
        except BaseException:
            self.kill()  # the next reply would belong to this item
            raise
        if finding.error == MemoryError.__name__:
            self.kill()  # memory that the process still holds would be missing for the next item
        return finding

    async def _receive(self) -> Finding:
        connection = self.connection  # `kill` may take it away meanwhile
        await self.readable()
        return connection.recv()
