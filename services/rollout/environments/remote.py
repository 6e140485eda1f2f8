"""Environments behind HTTP.

    POST URL/step   {"trajectory": "run/0/3/1", "seed": 7, "turn": 0, "row": {...}, "message": null}   ->   200   {}
    POST URL/step   {..., "turn": 1, ..., "message": {"role": "assistant", "content": "calc(61-48)"}}
                    ->   200   {"messages": [{"role": "tool", "content": "13"}], "done": false, "reward": 0.0}

Turn 0 begins the trajectory, also one that the server knows already: a task may be delivered again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx

from cepo.service.hooks import one_line
from services.rollout.environments.protocol import (
    MAX_REPLY_BYTES,
    EnvironmentFailure,
    EnvironmentStep,
    read_step,
    step_of,
)

CONNECT_RETRIES = 3
"""Only failed connection attempts are retried, not error replies: the environment may have taken the step."""


class RemoteEnvironment:
    """One trajectory in an environment behind HTTP."""

    def __init__(
        self, client: httpx.AsyncClient, url: str, deadline_seconds: float, trajectory: dict[str, Any]
    ) -> None:
        self._client = client
        self._url = f"{url.rstrip('/')}/step"
        self._deadline_seconds = deadline_seconds
        self._trajectory = trajectory
        self._turn = 0

    async def reset(self) -> None:
        """Begins the trajectory.

        Raises:
            EnvironmentFailure: the environment was not reached, or answered with an error or a step.
        """
        if read_step(await self._post(None)) != EnvironmentStep():
            raise EnvironmentFailure("it answered turn 0 with a step; the row's question begins the conversation")

    async def step(self, message: dict[str, Any]) -> EnvironmentStep:
        self._turn += 1
        return step_of(await self._post(message))

    async def _post(self, message: dict[str, Any] | None) -> bytes:
        body = {**self._trajectory, "turn": self._turn, "message": message}
        try:
            async with (
                asyncio.timeout(self._deadline_seconds),
                self._client.stream("POST", self._url, json=body) as reply,
            ):
                if reply.status_code != httpx.codes.OK:
                    raise EnvironmentFailure(f"it answered {reply.status_code}")
                return await _read(reply)
        except TimeoutError as error:
            raise EnvironmentFailure(f"no answer within {self._deadline_seconds:g} s", timed_out=True) from error
        except httpx.HTTPError as error:
            raise EnvironmentFailure(f"it is not reached: {one_line(error)}") from error


async def _read(reply: httpx.Response) -> bytes:
    content = bytearray()
    async for part in reply.aiter_raw():  # a compressed body could be small and expand
        content += part
        if len(content) > MAX_REPLY_BYTES:
            raise EnvironmentFailure(f"it answered more than {MAX_REPLY_BYTES} bytes")
    return bytes(content)


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[httpx.AsyncClient]:
    """The client of all remote environments. The deadline of each answer is its only limit of time."""
    transport = httpx.AsyncHTTPTransport(
        retries=CONNECT_RETRIES, limits=httpx.Limits(max_connections=None, max_keepalive_connections=64)
    )
    headers = {"accept-encoding": "identity"}
    async with httpx.AsyncClient(transport=transport, timeout=None, headers=headers) as client:
        yield client
