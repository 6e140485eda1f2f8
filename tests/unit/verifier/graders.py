"""The processes of a grader pool, which only tests ask for."""

from __future__ import annotations

from services.verifier.pool import GraderPool


def pids(pool: GraderPool) -> list[int]:
    """Process ids of the workers that are alive, spares included."""
    return [worker.pid for worker in pool._workers if worker.pid is not None]
