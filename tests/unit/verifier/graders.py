"""The processes of a grader pool, which only tests ask for."""

from __future__ import annotations

from services.verifier.pool import GraderPool


def pids(pool: GraderPool) -> list[int]:
    """Process ids of the workers that are alive, spares included."""
    return [worker.pid for worker in pool._workers if worker.pid is not None]


def busy_pids(pool: GraderPool) -> list[int]:
    """Process ids of the workers that have an item; none are listed while a killed worker is being replaced."""
    if pool._revivals:
        return []
    idle = list(pool._idle._queue)  # type: ignore[attr-defined]
    return [worker.pid for worker in pool._workers if worker.pid is not None and worker not in idle]
