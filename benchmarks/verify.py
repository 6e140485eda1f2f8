"""Throughput and p99 latency of the verifier's pool against math-verify called directly, with hostile items mixed in.

Both judge the same items with the same deadline. math-verify is called as its documentation says: one call after
another in one process, with its own alarm signals. An alarm cannot interrupt a long arithmetic operation, so some
hostile items would never end. They are tested separately and left out of the timed rounds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
import random
import statistics
import time

import math_verify

from benchmarks import _report
from services.verifier.pool import GraderPool
from services.verifier.verdicts import Item

DEADLINE_SECONDS = 1
ROUNDS = 5
AIM = 1.0
GIVEN_UP_SECONDS = 8.0
BOMBS = ["(x+y+z)^{400}(a+b)^{400}", "x^" * 300 + "x", "\\int e^{-x^{x^x}}\\sin(x^x) dx", "\\sum_{n=1}^{10^6} n^{n}"]
BOMB_ANSWER = "10000"
STUBBORN = "9^{9^{9^9}}"


def innocent(count: int) -> list[Item]:
    """Answers like those of models to questions of GSM8K and MATH: most are numbers, some need algebra."""
    rng = random.Random(0)
    items = []
    for i in range(count):
        a, b = rng.randint(2, 999), rng.randint(2, 99)
        answer, reference = (
            (f"{a}", f"{a}"),
            (f"{a}.0", f"{a + i % 2}"),
            (f"\\frac{{{a}}}{{{b}}}", f"{a}/{b}"),
            (f"{a}x+{b}x", f"{a + b}x"),
            (f"{b}\\sqrt{{2}}", f"\\sqrt{{{2 * b * b}}}"),
            (f"({a}, {b})", f"({a}, {b + i % 2})"),
        )[i % 6]
        items.append(Item(f"So the answer is \\boxed{{{answer}}}.", reference))
    return items


def mixture(count: int, bombs: int) -> list[Item]:
    """Innocent items with `bombs` hostile items spread evenly among them."""
    items = innocent(count)
    step = len(items) // (bombs + 1)
    for i in range(bombs):
        items.insert((i + 1) * step + i, Item(f"\\boxed{{{BOMBS[i % len(BOMBS)]}}}", f"{BOMB_ANSWER}{i}"))
    return items


async def ours(pool: GraderPool, items: list[Item], clients: int) -> tuple[float, list[float]]:
    """Grades items with the pool. Returns the wall seconds of all items, and the latency of each in their order."""
    waiting, latencies = iter(enumerate(items)), [0.0] * len(items)

    async def client() -> None:
        for index, item in waiting:
            begun = time.perf_counter()
            await pool.grade([item])
            latencies[index] = time.perf_counter() - begun

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - begun, latencies


def directly(items: list[Item]) -> tuple[float, list[float]]:
    """Grades items with math-verify alone. Returns the same as `ours`."""
    latencies = []
    for item in items:
        begun = time.perf_counter()
        reference = math_verify.parse(f"${item.answer}$", parsing_timeout=DEADLINE_SECONDS)
        answer = math_verify.parse(item.response, parsing_timeout=DEADLINE_SECONDS)
        math_verify.verify(reference, answer, timeout_seconds=DEADLINE_SECONDS)
        latencies.append(time.perf_counter() - begun)
    return sum(latencies), latencies


def survives(items: list[Item]) -> bool:
    """Whether math-verify finishes within GIVEN_UP_SECONDS."""
    process = multiprocessing.get_context("fork").Process(target=directly, args=(items,))
    process.start()
    process.join(GIVEN_UP_SECONDS)
    alive = process.is_alive()
    process.kill()
    process.join()
    return not alive


def summary(rounds: list[tuple[float, list[float]]], items: list[Item]) -> dict[str, float]:
    """Medians over the rounds, and the maximum latency of all rounds."""
    calm = [i for i, item in enumerate(items) if not item.answer.startswith(BOMB_ANSWER)]
    return {
        "items_per_second": round(statistics.median(len(items) / seconds for seconds, _ in rounds), 2),
        "p99_seconds": round(statistics.median(p99(latencies) for _, latencies in rounds), 4),
        "p99_innocent_seconds": round(statistics.median(p99([took[i] for i in calm]) for _, took in rounds), 4),
        "slowest_seconds": round(max(max(latencies) for _, latencies in rounds), 4),
    }


def p99(latencies: list[float]) -> float:
    """The 99th percentile by the nearest-rank method."""
    return sorted(latencies)[math.ceil(len(latencies) * 0.99) - 1]


async def measure(items: list[Item], workers: int, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """The figures of the pool and of math-verify, in alternating rounds."""
    pooled, alone = [], []
    async with GraderPool(workers, float(DEADLINE_SECONDS)) as pool:
        for _ in range(rounds):
            pooled.append(await ours(pool, items, workers))
            alone.append(directly(items))
    return summary(pooled, items), summary(alone, items)


def main() -> None:
    """Measures, prints the result and writes it to benchmarks/results/."""
    parser = _report.arguments(__doc__, "fewer items; under a minute")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    options = parser.parse_args()
    count, bombs = (150, 2) if options.quick else (600, 8)
    items = mixture(count, bombs)
    directly(items[:6])
    pooled, alone = asyncio.run(measure(items, options.workers, options.rounds))
    _report.write(
        "verify",
        ours=pooled,
        alternative=alone,
        ratio=pooled["items_per_second"] / alone["items_per_second"],
        aim=AIM,
        items=len(items),
        hostile=bombs,
        rounds=options.rounds,
        deadline_seconds=DEADLINE_SECONDS,
        workers=options.workers,
        math_verify_answers_a_power_tower=survives([Item(f"\\boxed{{{STUBBORN}}}", "7")]),
    )


if __name__ == "__main__":
    main()
