"""The processes of the soak: stages with toy engines, and a trainer that records each step instead of learning from it.

Bus, stage loop, collector and lease are those of the project. A group's prompt ids are derived from its task, so that
the trainer notices a group that got the content of another group.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._simulation import Shape, Workers
from cepo.errors import CepoError
from cepo.messages.arrays import Int32Array
from cepo.messages.groups import EvidencedGroup, GroupFailed, PromptTask, RolloutGroup, Stage
from cepo.net.processes import die_with_parent
from cepo.service.bus import RedisBus, stream_of
from cepo.service.stage import StageLoop
from services.trainer.collector import Collector

RUN = "soak"
POISON = "poison"
"""The reference answer of a task whose handler always fails."""
SHAPE = Shape(samples=2, tokens=16)
STEPS_IN_FLIGHT = 3
REFUSED = 2
"""Exit code of a trainer that was refused or that lost its lease."""


@dataclass(frozen=True)
class Place:
    """What every process of a soak knows."""

    url: str
    folder: Path
    groups: int
    """Groups per step."""
    steps: int
    poison: frozenset[int]
    """Numbers of the groups whose handler always fails."""
    claim_seconds: float
    max_deliveries: int = 5

    @property
    def lease_seconds(self) -> float:
        return 6 * self.claim_seconds

    @property
    def clock(self) -> Path:
        """A file of one float: the seconds by which the clocks of all processes are wrong."""
        return self.folder / "clock"

    @property
    def gate(self) -> Path:
        """A file whose size in bytes is the number of steps that the trainer may record: not beyond the next fault."""
        return self.folder / "gate"

    @property
    def ended(self) -> Path:
        """The errors with which processes have ended themselves."""
        return self.folder / "ended"

    @property
    def ledger(self) -> Path:
        return self.folder / "steps.jsonl"

    def bus(self) -> RedisBus:
        return RedisBus(
            self.url, self.claim_seconds, max_deliveries=self.max_deliveries, lease_seconds=self.lease_seconds
        )

    def tasks(self, step: int) -> list[PromptTask]:
        """The tasks of a step; the seed of a task is the number of its group."""
        first = step * self.groups

        def changes(number: int) -> dict[str, Any]:
            return {"step": step, "seed": number} | ({"reference_answer": POISON} if number in self.poison else {})

        tasks = SHAPE.tasks(RUN, self.groups)
        return [task.model_copy(update=changes(first + i)) for i, task in enumerate(tasks)]


def start(place: Place, work: Callable[[], Any]) -> int:
    """Forks a process that runs a coroutine function; returns its id.

    Forking costs milliseconds, where a new interpreter would spend a second on imports after every kill.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        log = (place.folder / "log").open("a")
        os.dup2(log.fileno(), sys.stderr.fileno())
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, force=True, format=f"{os.getpid()} %(message)s")
        step_clock(place.clock)
        asyncio.run(work())
        code = 0
    except (CepoError, BaseExceptionGroup) as error:
        refused = isinstance(error, CepoError) or error.subgroup(CepoError) is not None
        code = REFUSED if refused else 1
        raise
    finally:
        if code:
            with place.ended.open("a") as out:
                traceback.print_exc(file=out)
        os._exit(code)


def step_clock(file: Path) -> None:
    """Makes `time.time` of this process wrong by the seconds in a file."""
    shared, real = mmap.mmap(os.open(file, os.O_RDONLY), 8, prot=mmap.PROT_READ), time.time
    time.time = lambda: real() + struct.unpack("d", shared[:8])[0]


async def work(place: Place, stage: Stage) -> None:
    """A worker of a stage, until it is killed."""
    rng, build = random.Random(), Workers(stage, SHAPE).handler()

    async def handler(message: Any) -> Any:
        await asyncio.sleep(rng.uniform(0.0, 0.02) if rng.random() < 0.98 else place.claim_seconds / 2)
        result = await build(message)
        if isinstance(result, RolloutGroup):
            return result.model_copy(update={"prompt_token_ids": Int32Array.of([result.task.seed])})
        if isinstance(result, EvidencedGroup) and result.task.reference_answer == POISON:
            raise RuntimeError("poison")
        return result

    loop = StageLoop(place.bus(), stage, handler, 8, place.claim_seconds, place.max_deliveries)
    await loop.run(asyncio.Event())


async def train(place: Place, name: str) -> None:
    """The trainer: publishes the tasks of a few steps ahead, takes each step in order, and records it.

    Raises:
        CepoError: another trainer works on the run, or has taken it over.
    """
    bus = place.bus()
    async with bus.lease(RUN, name):
        collector = Collector(bus, RUN, lambda proof: None, partial(bus.publish, stream_of(Stage.ROLLOUT)))
        first = next_step(place.ledger)
        for step in range(first, min(first + STEPS_IN_FLIGHT, place.steps)):
            await publish(collector, bus, place.tasks(step))
        for step in range(first, place.steps):
            groups = await collector.take(place.tasks(step))
            while step >= place.gate.stat().st_size:
                await asyncio.sleep(0.01)
            record(place.ledger, step, groups)
            if step + STEPS_IN_FLIGHT < place.steps:
                await publish(collector, bus, place.tasks(step + STEPS_IN_FLIGHT))
    await bus.close()


async def publish(collector: Collector, bus: RedisBus, tasks: list[PromptTask]) -> None:
    collector.expect(tasks)
    await bus.publish(stream_of(Stage.ROLLOUT), tasks)


def record(file: Path, step: int, groups: list[EvidencedGroup | GroupFailed]) -> None:
    """Appends a step, as a trainer writes a checkpoint. The lock stands for that of the run folder.

    Raises:
        CepoError: another trainer has recorded the step meanwhile.
    """
    with file.open("a") as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        if next_step(file) != step:
            raise CepoError(f"step {step} is recorded already: this trainer was replaced")
        failed = {g.task.seed: f"{g.stage.name}: {g.error}" for g in groups if isinstance(g, GroupFailed)}
        wrong = [
            group.task.seed
            for group in groups
            if isinstance(group, EvidencedGroup) and list(group.scored.rollout.prompt_token_ids) != [group.task.seed]
        ]
        row = {"step": step, "groups": [group.task.seed for group in groups], "failed": failed, "wrong": wrong}
        out.write(json.dumps(row) + "\n")
        out.flush()
        os.fsync(out.fileno())


def next_step(file: Path) -> int:
    """The number of recorded steps."""
    return file.read_bytes().count(b"\n") if file.exists() else 0
