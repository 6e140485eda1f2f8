"""The best policy of a run by held-out accuracy: chosen on half of the held-out problems, measured on the other half.

The accuracy that chose a policy is optimistic, because the best of many noisy values is too high. The other half of the
problems had no part in the choice, so its accuracy is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CHOICE, REPORT, PROBLEMS = "accuracy/eval_choice", "accuracy/eval_report", "accuracy/eval_report_problems"
"""The metrics of an evaluation: accuracy on the half that chooses, on the half that measures, and the latter's size."""
_Z95 = 1.959964

Row = Mapping[str, float | None]


@dataclass(frozen=True)
class Best:
    """The policy with the highest accuracy on the half of the held-out problems that chooses."""

    version: int
    """Its adapter; 0 is the base model."""
    chosen: float
    """Its accuracy on the half that chose it; too high by the choice."""
    measured: float
    """Its accuracy on the other half."""
    low: float
    """Lower bound of the 95 % interval of `measured` (Wilson, 1927), with one trial a problem."""
    high: float

    def __str__(self) -> str:
        return f"v{self.version:06d}, held out {self.measured:.1%} (95 % interval {self.low:.1%} to {self.high:.1%})"


def wilson(share: float, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share of independent trials."""
    if trials <= 0:
        return 0.0, 1.0
    scale = 1.0 + _Z95**2 / trials
    middle = (share + _Z95**2 / (2 * trials)) / scale
    reach = _Z95 / scale * math.sqrt(share * (1.0 - share) / trials + (_Z95 / (2 * trials)) ** 2)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def evaluations(rows: Sequence[Row]) -> list[Best]:
    """Every evaluated policy of a run, in order."""
    return [
        Best(int(step) + 1, choice, report, *wilson(report, int(row.get(PROBLEMS) or 0)))
        for row in rows
        if (step := row.get("step")) is not None
        and (choice := row.get(CHOICE)) is not None
        and (report := row.get(REPORT)) is not None
    ]


def best_of(rows: Sequence[Row]) -> Best | None:
    """The best policy; the earliest of several that are equal, and None if no policy was evaluated."""
    return max(evaluations(rows), key=lambda policy: (policy.chosen, -policy.version), default=None)


def plateaued(rows: Sequence[Row], patience: int) -> bool:
    """Whether the last `patience` evaluations found no better policy; never with a patience of 0."""
    policies, best = evaluations(rows), best_of(rows)
    return best is not None and 0 < patience <= sum(policy.version > best.version for policy in policies)
