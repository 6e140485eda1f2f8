"""Groups lost, doubled or failed without cause, while every process is killed, stalled, filled and misled at random.

The bus, the stage loops, the collector and the lease of the project, and a real Redis with an append-only file. Engines
are toys, and the trainer records each step instead of learning from it. Faults are spread over the groups at random:
SIGKILL of workers and trainer, SIGSTOP beyond the claim, a trainer that is replaced while it stalls, a second trainer,
Redis killed and its append-only file cut, Redis stalled, out of memory, its disk full, its connections dropped, steps
of the clock, a handler that always fails, items that cannot be read or are of a newer version.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _report
from benchmarks._soak_faults import Soak
from benchmarks._soak_parts import Place

CORES = 2
FAULTS = {
    "kill_worker": 50,
    "kill_trainer": 400,
    "stop_worker": 200,
    "replace_trainer": 2500,
    "second_trainer": 2500,
    "kill_redis": 500,
    "stall_redis": 2500,
    "fill_memory": 2000,
    "fill_disk": 2000,
    "drop_connections": 1000,
    "clock_forward": 1000,
    "clock_back": 1000,
    "unreadable": 200,
}
"""The number of groups per fault of each kind; each kind happens at least once."""
DISK_BYTES_PER_GROUP = 2**16
"""The size of the disk of Redis, whose append-only file grows all the time."""
POISON = 500
"""One group in this many has a handler that always fails."""


@dataclass(frozen=True)
class Plan:
    """The size of a soak."""

    groups: int
    step: int
    claim_seconds: float
    seed: int

    def faults(self) -> list[tuple[int, str]]:
        """Every fault and the number of recorded groups at which it happens, in order."""
        rng, last = random.Random(self.seed), int(0.95 * self.groups)
        return sorted(
            (rng.randrange(last), name) for name, every in FAULTS.items() for _ in range(max(1, self.groups // every))
        )

    def poison(self) -> frozenset[int]:
        """The groups whose handler always fails."""
        rng = random.Random(-self.seed)
        return frozenset(rng.sample(range(self.groups), max(1, self.groups // POISON)))


def soak(plan: Plan) -> dict[str, Any]:
    """Runs a soak; returns its figures. `broken` lists the bounds that do not hold, and is empty if all do."""
    with tempfile.TemporaryDirectory() as name:
        folder, steps = Path(name), plan.groups // plan.step

        def place(url: str) -> Place:
            return Place(url, folder, plan.step, steps, plan.poison(), plan.claim_seconds)

        disk_bytes = 2**25 + DISK_BYTES_PER_GROUP * plan.groups
        with Soak(place, folder, random.Random(plan.seed), disk_bytes) as running:
            return running.run(plan.faults())


def main() -> None:
    """Measures, prints the result and writes it to benchmarks/results/; exits 1 if a bound does not hold."""
    parser = _report.arguments(__doc__, "1,000 groups; half a minute")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="places the faults; random by default")
    options = parser.parse_args()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:CORES]))
    groups, seed = 1000 if options.quick else 10_000, options.seed
    sys.stderr.write(f"{groups} groups, seed {seed}\n")
    figures = soak(Plan(groups, 50, 1.0, seed))
    once = figures.pop("groups_exactly_once")
    _report.write(
        "soak",
        ours={"groups_exactly_once": once},
        alternative=None,
        ratio=once / groups,
        aim=1.0,
        besides=not figures["broken"],
        groups=groups,
        seed=seed,
        **figures,
    )
    sys.exit(bool(figures["broken"]))


if __name__ == "__main__":
    main()
