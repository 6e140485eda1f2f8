"""The checks before a run, in the order in which they run: the cheapest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cepo.cli.preflight import data_checks, engine_trial, environment_checks, machine_checks, model_checks
from cepo.cli.preflight.preflight import CheckFinding, Findings, Preflight

CHECKS: dict[str, Callable[[Preflight], Findings]] = {
    "redis": machine_checks.redis,
    "model": model_checks.model,
    "adapter": model_checks.adapter,
    "device": machine_checks.device,
    "disk": machine_checks.disk,
    "trackers": machine_checks.trackers,
    "data": data_checks.data,
    "tokens": model_checks.tokens,
    "answers": data_checks.answers,
    "reward": data_checks.reward,
    "environment": environment_checks.environments,
    "repeats": data_checks.repeats,
    "context": data_checks.context,
    "sampling": data_checks.sampling,
    "memory": machine_checks.memory,
}


def run_checks(preflight: Preflight) -> Iterator[CheckFinding]:
    """Runs every check and yields its findings; `preflight.check` names the current check.

    Raises:
        UserError: the first problem that blocks the run, with its fix.
        Unreachable: Redis does not answer.
    """
    checks = CHECKS | ({"engine": engine_trial.engine} if preflight.engine else {})
    for preflight.check, check in checks.items():
        for state, text in check(preflight):
            yield CheckFinding(preflight.check, state, text)
