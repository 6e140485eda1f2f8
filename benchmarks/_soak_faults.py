"""The director of the soak: starts the processes, causes the faults, and counts what is left of the groups."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

from redis.exceptions import RedisError, ResponseError

from benchmarks._simulation import ROUTE
from benchmarks._soak_parts import REFUSED, RUN, Place, next_step, start, train, work
from benchmarks._soak_server import Server, ask, set_clock
from cepo.messages.groups import Stage
from cepo.messages.wire import to_bytes
from cepo.service.bus import FAILURES, GROUP, ready, stream_of

WORKERS = 3
"""Workers per stage. The first is stopped but never killed, so that its memory shows whether it grows."""
LIMITS = {
    "lost": 0,
    "doubled": 0,
    "wrong_content": 0,
    "failed_without_cause": 0,
    "poison_not_failed": 0,
    "steps_out_of_order": 0,
    "processes_that_ended_themselves": 0,
    "replaced_trainers_not_fenced": 0,
    "second_trainers_not_refused": 0,
    "items_left": 0,
    "pending_left": 0,
    "dead_consumers_left": 0,
    "redis_growth_megabytes": 8.0,
    "worker_growth_megabytes": 30.0,
    "seconds": 900.0,
}
"""The largest value of each figure."""


class Soak:
    """One soak, in a folder of its own."""

    def __init__(self, place: Callable[[str], Place], folder: Path, rng: random.Random, disk_bytes: int) -> None:
        """Starts nothing yet.

        Args:
            place: makes what the processes know, from the address of Redis.
            disk_bytes: the size of the disk of Redis.
        """
        (clock := folder / "clock").write_bytes(bytes(8))
        self._server = Server(folder, clock, disk_bytes)
        self._place, self._rng = place(self._server.url), rng
        self._claim = self._place.claim_seconds
        self._workers: dict[int, tuple[Stage, bool]] = {}
        self._stopped: dict[int, float] = {}
        self._trainer, self._holder, self._clock = 0, "", 0.0
        self._counts: Counter[str] = Counter()
        self._memory: list[int] = []
        self._resident: dict[int, list[int]] = {}
        self._sampled_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in (*self._workers, self._trainer):
            if pid and os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        self._server.stop()

    def run(self, faults: list[tuple[int, str]]) -> dict[str, Any]:
        """Trains to the last step through all faults; returns the figures.

        Args:
            faults: the number of recorded groups at which a fault happens, and the name of a method of this class.
        """
        begun, waiting = time.monotonic(), list(faults)
        for file in (self._place.gate, self._place.ended):
            file.touch()
        self._server.start()
        for stage in ROUTE:
            for number in range(WORKERS):
                self._start_worker(stage, number == 0)
        self._start_trainer()
        while self._trainer and time.monotonic() - begun < LIMITS["seconds"]:
            self._open_gate(waiting)
            self._tend()
            while waiting and waiting[0][0] <= self._recorded():
                name = waiting.pop(0)[1]
                getattr(self, name)()
                self._counts[name] += 1
                self._tend()
        seconds = time.monotonic() - begun
        return self._figures(seconds, self._settle())

    def kill_worker(self) -> None:
        os.kill(self._rng.choice([pid for pid, (_, kept) in self._workers.items() if not kept]), signal.SIGKILL)

    def stop_worker(self) -> None:
        """Stops a worker for longer than its claim."""
        pid = self._rng.choice(list(self._workers))
        os.kill(pid, signal.SIGSTOP)
        self._stopped[pid] = time.monotonic() + self._rng.uniform(1.2, 3.0) * self._claim

    def kill_trainer(self) -> None:
        os.kill(self._trainer, signal.SIGKILL)
        os.waitpid(self._trainer, 0)
        self._start_trainer()

    def replace_trainer(self) -> None:
        """Stops the trainer until another one has taken the run over, then lets it continue: it must end."""
        self._await_holder()
        old = self._trainer
        os.kill(old, signal.SIGSTOP)
        self._start_trainer()
        self._await_holder()
        os.kill(old, signal.SIGCONT)
        self._counts["replaced_trainers_not_fenced"] += self._end_of(old) != REFUSED

    def second_trainer(self) -> None:
        """Starts a second trainer: it must be refused."""
        self._await_holder()
        second = start(self._place, partial(train, self._place, "second"))
        self._counts["second_trainers_not_refused"] += self._end_of(second) != REFUSED

    def kill_redis(self) -> None:
        cut = self._rng.choice([0, self._rng.randrange(4096), self._rng.randrange(2**19)])  # up to a second of writes
        self._server.crash(cut, self._rng.uniform(0.0, 1.0) * self._claim)

    def stall_redis(self) -> None:
        self._server.stall(self._rng.uniform(2.0, 7.0) * self._claim)

    def fill_memory(self) -> None:
        self._server.fill_memory(2.0 * self._claim)

    def fill_disk(self) -> None:
        self._server.fill_disk(3.0 * self._claim)

    def drop_connections(self) -> None:
        self._server.drop_connections()

    def clock_forward(self) -> None:
        self._set_clock(self._rng.uniform(60, 7200))

    def clock_back(self) -> None:
        self._set_clock(-self._rng.uniform(1.0, 3.0))

    def unreadable(self) -> None:
        """Puts damaged items and items of a newer version on a stream."""
        stream = "{cepo}:" + self._rng.choice([*map(stream_of, ROUTE), ready(RUN)])
        newer = to_bytes(self._place.tasks(0)[0]) + b"\xa0\x06\x63"  # field 100
        items = [("RolloutGroup", b"\xff\xff\xff"), ("RolloutGroupV2", newer), ("ScoredGroup", newer)]
        for name, body in items:
            ask(self._server.client, 30, lambda client, n=name, b=body: client.xadd(stream, {"type": n, "body": b}))

    def _set_clock(self, step: float) -> None:
        self._clock += step
        set_clock(self._place.clock, self._clock)

    def _open_gate(self, waiting: list[tuple[int, str]]) -> None:
        """Lets the trainer record the step at which the next fault is due and no more, so that the fault hits a run."""
        os.truncate(self._place.gate, waiting[0][0] // self._place.groups + 1 if waiting else self._place.steps)

    def _recorded(self) -> int:
        return next_step(self._place.ledger) * self._place.groups

    def _start_worker(self, stage: Stage, kept: bool) -> None:
        self._workers[start(self._place, partial(work, self._place, stage))] = (stage, kept)

    def _start_trainer(self) -> None:
        self._counts["trainers"] += 1
        self._holder = f"trainer-{self._counts['trainers']}"
        self._trainer = start(self._place, partial(train, self._place, self._holder))

    def _await_holder(self) -> None:
        """Waits until the current trainer holds the lease."""
        key = "{cepo}:lease:" + RUN
        while ask(self._server.client, 60, lambda c: c.hget(key, "holder")) != self._holder.encode():
            self._tend()

    def _end_of(self, pid: int) -> int:
        """The exit code of a trainer that must end; -9 if it does not."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            self._tend()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return -signal.SIGKILL

    def _tend(self) -> None:
        """Starts processes again that have ended, lets stopped ones continue, and samples the memory."""
        for pid, (stage, kept) in list(self._workers.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._counts["processes_that_ended_themselves"] += not os.WIFSIGNALED(status)
                del self._workers[pid]
                self._stopped.pop(pid, None)
                self._start_worker(stage, kept)
        if self._trainer:
            ended, status = os.waitpid(self._trainer, os.WNOHANG)
            if ended and not os.WIFSIGNALED(status) and next_step(self._place.ledger) == self._place.steps:
                self._trainer = 0
            elif ended:
                self._counts["processes_that_ended_themselves"] += not os.WIFSIGNALED(status)
                self._start_trainer()
        for pid, until in list(self._stopped.items()):
            if time.monotonic() > until:
                os.kill(pid, signal.SIGCONT)
                del self._stopped[pid]
        if time.monotonic() - self._sampled_at > 1.0:
            self._sample()
        time.sleep(0.02)

    def _sample(self) -> None:
        self._sampled_at = time.monotonic()
        try:
            self._memory.append(self._server.memory())
        except RedisError:
            return
        for pid, (_, kept) in self._workers.items():
            if kept:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                self._resident.setdefault(pid, []).append(pages * os.sysconf("SC_PAGESIZE"))

    def _settle(self) -> dict[str, int]:
        """Waits until the streams are empty and only living consumers are left; returns what is left after a minute."""
        deadline = time.monotonic() + 60
        while any((left := self._left()).values()) and time.monotonic() < deadline:
            self._tend()
        return left

    def _left(self) -> dict[str, int]:
        left: Counter[str] = Counter(items_left=0, pending_left=0, dead_consumers_left=0)
        for stage in ROUTE:
            key = "{cepo}:" + stream_of(stage)
            living = sum(each is stage for each, _ in self._workers.values())
            try:
                left["items_left"] += self._server.client.xlen(key)
                left["pending_left"] += self._server.client.xpending(key, GROUP)["pending"]
                left["dead_consumers_left"] += max(0, len(self._server.client.xinfo_consumers(key, GROUP)) - living)
            except ResponseError:
                left["items_left"] += 1  # the group is created again at the next call
        return dict(left)

    def _figures(self, seconds: float, left: dict[str, int]) -> dict[str, Any]:
        rows = [json.loads(line) for line in self._place.ledger.read_text().splitlines()]
        total = self._place.groups * self._place.steps
        seen = Counter(number for row in rows for number in row["groups"])
        failed = {int(number): error for row in rows for number, error in row["failed"].items()}
        poisoned = {number for number in self._place.poison if number in seen}
        growth = [samples[-1] - samples[min(5, len(samples) - 1)] for samples in self._resident.values()]
        figures: dict[str, Any] = {
            "lost": total - len(seen),
            "doubled": sum(seen.values()) - len(seen),
            "wrong_content": sum(len(row["wrong"]) for row in rows),
            "failed_without_cause": len(set(failed) - poisoned),
            "poison_not_failed": len(poisoned - set(failed)),
            "steps_out_of_order": sum(row["step"] != at for at, row in enumerate(rows)),
            "processes_that_ended_themselves": self._counts["processes_that_ended_themselves"],
            "replaced_trainers_not_fenced": self._counts["replaced_trainers_not_fenced"],
            "second_trainers_not_refused": self._counts["second_trainers_not_refused"],
            **left,
            "redis_growth_megabytes": round((self._memory[-1] - self._memory[0]) / 1e6, 1),
            "worker_growth_megabytes": round(max(growth, default=0) / 1e6, 1),
            "seconds": round(seconds, 1),
        }
        log = (self._place.folder / "log").read_text(errors="replace")
        broken = [f"{name}: {figures[name]} > {limit}" for name, limit in LIMITS.items() if figures[name] > limit]
        if broken:
            sys.stderr.write(log[-20_000:] + self._place.ended.read_text())
        once = sum(count == 1 for count in seen.values())
        return {
            "groups_exactly_once": once,
            **figures,
            "broken": broken,
            "faults": {k: v for k, v in sorted(self._counts.items()) if k not in figures},
            "failed": dict(sorted(failed.items())[:20]),
            "calls_that_waited": {
                "for memory": len(re.findall("refuses writes .*maxmemory", log)),
                "for the disk": len(re.findall("refuses writes .*MISCONF", log)),
            },
            "reissued": sum(map(int, re.findall(r"no stream holds (\d+) groups", log))),
            "set_aside": int(self._server.client.xlen("{cepo}:" + FAILURES)),
            "redis_megabytes": [round(each / 1e6, 1) for each in self._memory[:: max(1, len(self._memory) // 10)]],
            "clock": self._server.clock,
            "disk": self._server.disk,
        }
