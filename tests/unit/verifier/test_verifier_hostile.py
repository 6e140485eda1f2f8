"""Hundreds of hostile responses between innocent ones: each gets its verdict in time, and none affects another."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from cepo.messages.groups import Outcome, Verdict
from services.verifier.pool import GraderPool
from services.verifier.verdicts import Item
from tests.unit.verifier.hostile import hostile, innocent

DEADLINE_SECONDS = 2.0
GRACE_SECONDS = 0.5
WORKERS = 4
ROOM = 10
"""Bound for an innocent item, as a multiple of the slowest one measured on this machine with worker starts."""


async def timed(pool: GraderPool, items: list[Item]) -> list[tuple[Verdict, float]]:
    """Verdict and seconds of each item; as many items at a time as there are workers."""
    waiting = iter(enumerate(items))
    found: dict[int, tuple[Verdict, float]] = {}

    async def client() -> None:
        for index, item in waiting:
            begun = time.perf_counter()
            (verdict,) = await pool.grade([item])
            found[index] = verdict, time.perf_counter() - begun

    async with asyncio.TaskGroup() as clients:
        for _ in range(WORKERS):
            clients.create_task(client())
    return [found[index] for index in range(len(items))]


async def room(innocents: list[Item]) -> float:
    """An upper bound of the seconds for an innocent item, which a busy machine raises."""
    async with GraderPool(WORKERS, 100.0) as patient:
        return ROOM * max(seconds for _, seconds in await timed(patient, innocents))


async def beat(delays: list[float]) -> None:
    """How late this event loop wakes up; on a busy machine no verdict can arrive earlier."""
    while True:
        begun = time.perf_counter()
        await asyncio.sleep(0.01)
        delays.append(time.perf_counter() - begun - 0.01)


async def test_hostile_responses_neither_hang_nor_crash_nor_disturb_the_innocent() -> None:
    bad = hostile()
    good = innocent(len(bad))
    assert len(bad) >= 300
    items = [item for pair in zip(bad, (item for item, _ in good), strict=True) for item in pair]
    ample = await room([item for item, _ in good[:40]])
    deadline, delays = max(DEADLINE_SECONDS, ample), [0.0]
    heart = asyncio.create_task(beat(delays))
    async with GraderPool(WORKERS, deadline) as pool:
        found = await timed(pool, items)
    heart.cancel()
    limit = deadline + GRACE_SECONDS + max(delays) + ample
    late = [
        (seconds, item.response[:40], verdict.outcome.name)
        for item, (verdict, seconds) in zip(items, found, strict=True)
        if seconds > limit
    ]
    outcomes = Counter(verdict.outcome for verdict, _ in found[::2])
    disturbed = [
        (item, verdict)
        for (item, outcome), (verdict, _) in zip(good, found[1::2], strict=True)
        if verdict.outcome is not outcome
    ]
    rewarded = [item for item, (verdict, _) in zip(bad, found[::2], strict=True) if verdict.reward]
    assert disturbed == []
    assert rewarded == []
    assert late == [], limit
    assert outcomes[Outcome.TIMEOUT] >= 5, outcomes
    assert set(outcomes) <= {Outcome.WRONG, Outcome.UNPARSED, Outcome.TIMEOUT, Outcome.GRADER_ERROR}
