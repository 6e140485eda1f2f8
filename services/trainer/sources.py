"""What the trainer remembers of its problems: their pass rates, for the curriculum, and the metrics of each source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cepo.algo.base import Metrics
from cepo.data.problems import Problem
from cepo.messages.groups import EvidencedGroup

MAX_LAG = 8
"""Of `loop.lag`: tasks may be made again from the pass rates of this many steps before."""


class PassHistory:
    """The pass rate of each problem's newest group as it was known before any of the last steps."""

    def __init__(self) -> None:
        self._old: dict[int, float] = {}
        """By the problem's row, from all steps before those of `_recent`."""
        self._recent: dict[int, dict[int, float]] = {}
        """By step, in order."""

    def record(self, step: int, problems: Sequence[Problem], groups: Sequence[EvidencedGroup]) -> None:
        """Adds the pass rates of a step's groups.

        Args:
            problems: those of the step; the task of problem i has the index i.
        """
        rates = {}
        for group in groups:
            verdicts = [verdict for verdict in group.scored.verdicts if not verdict.failed]
            if group.task.origin is None and verdicts and group.task.index < len(problems):
                rates[problems[group.task.index].row] = sum(v.correct for v in verdicts) / len(verdicts)
        self._recent[step] = rates
        for old in [each for each in self._recent if each < step - MAX_LAG]:
            self._old |= self._recent.pop(old)

    def before(self, step: int) -> dict[int, float]:
        """The newest pass rate of each problem from the groups of all earlier steps."""
        known = dict(self._old)
        for each, rates in self._recent.items():
            if each < step:
                known |= rates
        return known

    def state(self) -> dict[str, Any]:
        """The content of a checkpoint."""
        return {"old": dict(self._old), "recent": {step: dict(rates) for step, rates in self._recent.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores a state of `state`."""
        self._old = dict(state["old"])
        self._recent = {step: dict(rates) for step, rates in state["recent"].items()}


def source_metrics(problems: Sequence[Problem], groups: Sequence[EvidencedGroup]) -> Metrics:
    """The groups, the accuracy and the reward of each source; nothing for a run with one data set.

    Args:
        problems: those of the step; the task of problem i has the index i.
    """
    metrics: Metrics = {}
    for title in dict.fromkeys(problem.source for problem in problems if problem.source):
        own = [
            group
            for group in groups
            if group.task.origin is None
            and group.task.index < len(problems)
            and problems[group.task.index].source == title
        ]
        verdicts = [verdict for group in own for verdict in group.scored.verdicts if not verdict.failed]
        metrics |= {
            f"source/{title}/groups": float(len(own)),
            f"source/{title}/accuracy": sum(v.accuracy for v in verdicts) / max(1, len(verdicts)),
            f"source/{title}/reward": sum(v.reward for v in verdicts) / max(1, len(verdicts)),
            f"source/{title}/no_spread": sum(not group.scored.reward_spread for group in own) / max(1, len(own)),
        }
    return metrics
