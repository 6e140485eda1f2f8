"""The environments of a rollout service: a bounded number of trajectories, each with a process or a URL of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx

from cepo.errors import UserError
from services.rollout.environments.process import EnvironmentProcess
from services.rollout.environments.protocol import DEADLINE_SECONDS, EnvironmentFailure, Playing
from services.rollout.environments.remote import RemoteEnvironment, connected

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Episode:
    """One trajectory to play: in which environment, from which row."""

    environment: str
    """`module:Class` or a URL."""
    row: dict[str, Any]
    seed: int
    name: str
    """The group and the sample, such as `my-run/0/3/1`: the same one if the task is delivered again."""


class Environments:
    """Plays trajectories with the environments that this process was started with.

    It is an async context manager; use it from one event loop.
    """

    def __init__(self, names: Sequence[str], at_once: int = 64, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        """Creates the pool; `start` checks the classes.

        Args:
            names: the environments that tasks may name, `module:Class` or URLs.
            at_once: trajectories that are played at the same time; those of classes take a process each.
            deadline_seconds: wall-clock limit for one answer.
        """
        self.names = tuple(names)
        self._classes = tuple(name for name in names if not _is_url(name))
        self._deadline_seconds = deadline_seconds
        self._slots = asyncio.Semaphore(at_once)
        self._idle: list[EnvironmentProcess] = []
        self._processes: set[EnvironmentProcess] = set()
        self._resources = contextlib.AsyncExitStack()
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Starts one process, so that a class that cannot be imported is known at once.

        Raises:
            UserError: an environment cannot be imported.
        """
        if self._classes:
            first = self._process()
            await first.start()
            self._idle.append(first)

    async def close(self) -> None:
        """Kills every process and closes every connection."""
        for process in self._processes:
            process.kill()
        await self._resources.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def check_allowed(self, name: str) -> None:
        """Checks that this process was started with an environment.

        Raises:
            UserError: names the environment that is missing.
        """
        if name not in self.names:
            raise UserError(
                f"environment {name} is not one this rollout service runs; start it with CEPO_ENVIRONMENTS={name}"
            )

    @contextlib.asynccontextmanager
    async def playing(self, episode: Episode) -> AsyncIterator[Playing]:
        """Begins a trajectory, once there is room for it, and yields its environment.

        Raises:
            EnvironmentFailure: the environment did not begin it.
        """
        async with self._slots:
            if _is_url(episode.environment):
                yield await self._remote(episode)
                return
            process = self._idle.pop() if self._idle else self._process()
            try:
                await process.reset(episode.environment, episode.row, episode.seed)
                yield process
            except EnvironmentFailure:
                process.kill()  # it may still be at work, or hold memory
                raise
            finally:
                self._idle.append(process)

    def _process(self) -> EnvironmentProcess:
        """A process that starts with its first trajectory."""
        process = EnvironmentProcess(self._deadline_seconds, self._classes)
        self._processes.add(process)
        return process

    async def _remote(self, episode: Episode) -> RemoteEnvironment:
        if self._client is None:
            self._client = await self._resources.enter_async_context(connected())
        asked = {"trajectory": episode.name, "seed": episode.seed, "row": episode.row}
        remote = RemoteEnvironment(self._client, episode.environment, self._deadline_seconds, asked)
        await remote.reset()
        return remote


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))
