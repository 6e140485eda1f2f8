"""Groups per second through all stages, and the bytes of a group, on two cores.

Redis, the three stages and the trainer are separate processes that share the cores. Engines take no time, so that the
benchmark measures the queue, the wire format and the validation of messages.
"""

from __future__ import annotations

import asyncio
import os
import statistics

from benchmarks import _report
from benchmarks._simulation import ROUTE, Cost, Shape, Workers, collect, redis_server, running
from cepo.messages.wire import to_bytes

AIM = 300.0
CORES = 2


def measure(shape: Shape, groups: int, rounds: int) -> list[Cost]:
    """The cost of `groups` groups in each round, after one more round that warms up."""
    fleet = [Workers(stage, shape, slots=16) for stage in ROUTE]
    with redis_server() as url, running(url, fleet):
        costs = [asyncio.run(collect(url, shape.tasks(f"bus{i}", groups))) for i in range(rounds + 1)]
    return costs[1:]


def main() -> None:
    """Measures, prints the result and writes it to benchmarks/results/."""
    options = _report.arguments(__doc__, "fewer groups; under a minute").parse_args()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:CORES]))
    shape = Shape()
    groups, rounds = (200, 3) if options.quick else (600, 5)
    costs = measure(shape, groups, rounds)
    rate = statistics.median(groups / cost.seconds for cost in costs)
    _report.write(
        "bus",
        ours={
            "groups_per_second": round(rate, 1),
            "redis_cpu_milliseconds_per_group": _median_milliseconds([c.redis_cpu_seconds / groups for c in costs]),
            "trainer_cpu_milliseconds_per_group": _median_milliseconds([c.trainer_cpu_seconds / groups for c in costs]),
            "redis_bytes_per_group": round(statistics.median(c.redis_bytes for c in costs) / groups),
        },
        alternative=None,
        ratio=rate,
        aim=AIM,
        samples=shape.samples,
        tokens=shape.tokens,
        bytes={type(message).__name__: len(to_bytes(message)) for message in asyncio.run(_journey(shape))},
        groups=groups,
        rounds=rounds,
    )


async def _journey(shape: Shape) -> list:
    messages = shape.tasks("journey", 1)
    for stage in ROUTE:
        messages.append(await Workers(stage, shape).handler()(messages[-1]))
    return messages


def _median_milliseconds(seconds: list[float]) -> float:
    return round(1000 * statistics.median(seconds), 3)


if __name__ == "__main__":
    main()
