"""Checks of the environments: they can be imported or reached, and begin with the first row of their problems."""

from __future__ import annotations

import asyncio
import json

from cepo.cli.preflight.preflight import Findings, Preflight
from cepo.data.problems import Problem
from cepo.errors import UserError


def environments(run: Preflight) -> Findings:
    """Every environment of the run begins a trajectory."""
    if not run.config.data.environments:
        yield "ok", "none: a response is one turn"
    for name in run.config.data.environments:
        every = [*run.train.problems, *(run.held_out.problems if run.held_out else ())]
        problem = next(p for p in every if run.config.data.of(p.source).environment == name)
        asyncio.run(_begun(name, problem))
        yield "ok", f"{name} begins with row {problem.row}"


async def _begun(name: str, problem: Problem) -> None:
    """Begins a trajectory.

    Raises:
        UserError: the environment cannot be imported, or fails; names it, with the reason.
    """
    from services.rollout.environments.pool import Environments, Episode
    from services.rollout.environments.protocol import EnvironmentFailure

    try:
        episode = Episode(name, json.loads(problem.columns), 0, "check/0/0/0")
        async with Environments([name]) as pool, pool.playing(episode):
            pass
    except EnvironmentFailure as error:
        raise UserError(f"environment {name}, row {problem.row}: {error}; fix or start it") from error
