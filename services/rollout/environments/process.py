"""One child process that plays the trajectories of environment classes, one after another."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

from cepo.errors import UserError
from cepo.service.killable import KillableProcess, preload
from services.rollout.environments import serving
from services.rollout.environments.protocol import MAX_REPLY_BYTES, EnvironmentFailure, EnvironmentStep, step_of

START_SECONDS = 60.0
PART_BYTES = 2**16
preload("services.rollout.environments.serving")


class EnvironmentProcess(KillableProcess):
    """Plays one trajectory at a time. The pool kills a process that failed; the next trajectory starts another."""

    def __init__(self, deadline_seconds: float, names: tuple[str, ...]) -> None:
        super().__init__("environment", serving.serve, deadline_seconds, names)
        self._deadline_seconds = deadline_seconds

    async def start(self) -> None:
        """Starts the process if none is alive.

        Raises:
            UserError: an environment cannot be imported.
            EnvironmentFailure: the process does not start.
        """
        if self.pid is not None:
            return
        await self.spawn()
        try:
            ready = await self._answer(START_SECONDS)
        except EnvironmentFailure as error:
            raise EnvironmentFailure(f"its process does not start: {error}") from error
        if reason := _failed(ready):
            self.kill()
            raise UserError(reason)

    async def reset(self, environment: str, row: dict[str, Any], seed: int) -> None:
        """Begins a trajectory.

        Raises:
            EnvironmentFailure: `reset` raised an error, hung or crashed.
        """
        await self.start()
        answer = await self._asked({"environment": environment, "row": row, "seed": seed})
        if reason := _failed(answer):
            raise EnvironmentFailure(reason)

    async def step(self, message: dict[str, Any]) -> EnvironmentStep:
        answer = await self._asked({"message": message})
        if reason := _failed(answer):
            raise EnvironmentFailure(reason)
        return step_of(answer)

    async def _asked(self, question: dict[str, Any]) -> bytes:
        return await self._answer(self._deadline_seconds, json.dumps(question).encode())

    async def _answer(self, seconds: float, question: bytes = b"") -> bytes:
        try:
            async with asyncio.timeout(seconds):
                if question:  # in a thread: a child that does not read takes no more than a pipe holds
                    await asyncio.to_thread(self.connection.send_bytes, question)
                return await self._line()
        except TimeoutError as error:
            self.kill()
            raise EnvironmentFailure(f"no answer within {seconds:g} s", timed_out=True) from error
        except OSError as error:
            self.kill()
            raise EnvironmentFailure("its process ended") from error
        except BaseException:
            self.kill()  # the next answer would belong to this trajectory
            raise

    async def _line(self) -> bytes:
        """The child's next line. It is read as it comes, since a child may stop in the middle of it."""
        descriptor, line = self.connection.fileno(), bytearray()
        while not line.endswith(b"\n"):
            await self.readable()
            part = os.read(descriptor, PART_BYTES)
            if not part:
                raise ConnectionResetError
            line += part
            if len(line) > MAX_REPLY_BYTES + 1:
                raise EnvironmentFailure(f"it answered more than {MAX_REPLY_BYTES} bytes")
        return bytes(line[:-1])


def _failed(answer: bytes) -> str:
    """Why the child could not answer; empty if it could."""
    return str(json.loads(answer)["failed"]) if answer.startswith(b'{"failed"') else ""
