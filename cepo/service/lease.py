"""The lease of a run: one trainer at a time, with a fencing token that Redis checks whenever the trainer publishes.

A trainer that stalls for longer than the lease (a suspended machine, a lost network) may be replaced. The successor's
token is newer, so Redis refuses what the first trainer publishes once it wakes up, and the first trainer ends. A lease
depends on no machine's clock: a successor takes it over after watching it for its whole duration without a renewal.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from cepo.errors import UserError
from cepo.service.scripts import ACQUIRE, RENEW

LEASE_SECONDS = 15.0
"""How long a trainer may stall before another one may take the run over. The trainer renews three times as often."""
FORGET_SECONDS = 30 * 86_400.0
"""Redis deletes the lease of a run that no trainer has worked on for this long."""
POLL_SECONDS = 0.2
Call = Callable[[str, str, list[Any]], Awaitable[Any]]
"""Runs a script: (source, key, arguments) -> reply."""


def taken_over(run: str, holder: str) -> UserError:
    """The error of a trainer that has lost its lease."""
    return UserError(
        f"run {run}: the trainer at {holder} has taken the run over while this trainer did not answer; this trainer "
        "ends and publishes nothing more"
    )


class Lease:
    """The lease of one run, for one trainer."""

    def __init__(self, call: Call, run: str, holder: str, seconds: float) -> None:
        """Does not connect yet.

        Args:
            call: runs a script on Redis.
            holder: address of this trainer, for the message that a second trainer shows.
        """
        self.key = "{cepo}:lease:" + run
        self.token = 0
        """The fencing token; 0 until the lease is held. Each holder's token is greater than that of the one before."""
        self.successor = ""
        """The address of the trainer that has taken the run over, once this one knows it."""
        self._over = False
        self._call, self._run, self._holder, self._seconds = call, run, holder, seconds
        self.process = _process(os.getpid())

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Takes the lease, renews it within the block and releases it afterwards.

        Raises:
            UserError: another trainer holds the run; within the block: another trainer has taken it over.
        """
        await self._acquire()
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(self._keep())
            try:
                yield
            finally:
                self._over = True  # the Redis client may swallow the cancellation
                renewing.cancel()
        await self._renew(0)

    async def _acquire(self) -> None:
        """Takes the lease: at once if it is free or its holder's process has ended, or after watching it."""
        seen, watched, wait = "", 0.0, min(POLL_SECONDS, self._seconds / 10)
        free = ""
        while True:
            arguments = [self._holder, self.process, free, int(1000 * FORGET_SECONDS)]
            token, *present = await self._call(ACQUIRE, self.key, arguments)
            if token:
                self.token = token
                return
            holder, process, state = [each.decode() for each in present]
            if (holder, process) == (self._holder, self.process):
                self.token = int(state.partition("/")[0])  # Redis has executed a call whose reply was lost
                return
            if _has_ended(process):
                free, seen = state, ""
                continue
            if seen and state != seen:
                raise UserError(
                    f"run {self._run}: the trainer at {holder} works on it; stop that trainer first, or give this "
                    "run another name (--run-dir)"
                )
            seen = state
            if watched >= self._seconds:
                free = state
                continue
            await asyncio.sleep(wait)
            watched += wait  # not the time that passed: while Redis stalls, no holder can renew its lease

    async def _keep(self) -> None:
        for beat in itertools.count(2):
            await asyncio.sleep(self._seconds / 3)
            if self._over:
                return
            await self._renew(beat)

    async def _renew(self, beat: int) -> None:
        arguments = [self.token, self._holder, self.process, beat, int(1000 * FORGET_SECONDS)]
        successor = await self._call(RENEW, self.key, arguments)
        if successor:
            self.successor = successor.decode()
            raise taken_over(self._run, self.successor)


def _process(pid: int) -> str:
    """A process as one word: boot, process namespace, pid, and start time, because pids are used again."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}/{pid}/{_started(pid)}"


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; empty if there is no such process, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _has_ended(process: str) -> bool:
    """Whether a process has certainly ended: one of this machine and namespace that runs no more."""
    place, pid, started = process.rsplit("/", 2)
    return _process(int(pid)).rsplit("/", 2)[0] == place and _started(int(pid)) != started
