"""How two runs differ on the same problems: held-out accuracy with its interval, problems that flipped, token credit.

Both runs answer the same held-out problems, so their difference is paired: the interval is a bootstrap over the
differences of the problems, as that of `cepo sweep` is over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cepo.cli.compare.runs import TRAIN, ComparedRun
from cepo.cli.sweep_results import mean_interval
from cepo.run.lines import Row

SOLVED = 0.5
"""A problem counts as solved if more than this share of its responses is correct."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out accuracy of a run after its last evaluation, and its difference to the first run."""

    accuracy: float | None
    """None: the run has not measured it."""
    difference: float | None
    low: float | None
    high: float | None
    problems: int
    """The problems of both runs that the difference is over; 0: it is not paired."""


@dataclass(frozen=True)
class Flip:
    """A held-out problem that one of two runs solves and the other does not."""

    question: str
    answer: str
    before: float
    """Share of correct responses in the first run."""
    after: float
    samples: tuple[Row, Row]
    """A response of each run."""

    @property
    def gained(self) -> bool:
        """Whether the other run solves it."""
        return self.after > self.before


@dataclass(frozen=True)
class CreditPair:
    """The same training problem in two runs, with a response of each and the credit of its tokens."""

    step: int
    question: str
    answer: str
    samples: tuple[Row, Row]


def held_out(run: ComparedRun, first: ComparedRun) -> HeldOut:
    """The held-out accuracy of a run and its difference to the first run."""
    ours, theirs = _solved(run.held_out()[1]), _solved(first.held_out()[1])
    common = [key for key in theirs if key in ours]
    accuracy, base = _last(run, ours), _last(first, theirs)
    if run is first or accuracy is None or base is None:
        return HeldOut(accuracy, None, None, None, 0)
    if not common:
        return HeldOut(accuracy, accuracy - base, None, None, 0)
    gaps = [_share(ours[key]) - _share(theirs[key]) for key in common]
    low, high = mean_interval(gaps) if len(gaps) > 1 else (None, None)
    return HeldOut(accuracy, fmean(gaps), low, high, len(gaps))


def flips(run: ComparedRun, first: ComparedRun) -> list[Flip]:
    """The problems that one run solves and the other does not, the clearest first."""
    ours, theirs = _solved(run.held_out()[1]), _solved(first.held_out()[1])
    found = [
        Flip(question_of(theirs[key]), str(theirs[key]["answer"]), before, after, (_one(theirs[key]), _one(ours[key])))
        for key in theirs
        if key in ours and ((before := _share(theirs[key])) > SOLVED) != ((after := _share(ours[key])) > SOLVED)
    ]
    return sorted(found, key=lambda flip: -abs(flip.after - flip.before))


def credit_pair(run: ComparedRun, first: ComparedRun) -> CreditPair | None:
    """A training problem of the newest step at which both runs drew it, with its most contrasted responses."""
    for step in sorted(run.steps & first.steps, reverse=True):
        theirs = {_key(group): group for group in first.rollouts.groups(TRAIN, step)}
        pairs = [(theirs[_key(ours)], ours) for ours in run.rollouts.groups(TRAIN, step) if _key(ours) in theirs]
        if pairs:
            left, right = max(pairs, key=lambda pair: sum(spread(_contrasted(group)) for group in pair))
            samples = _contrasted(left), _contrasted(right)
            return CreditPair(step, question_of(left), str(left["answer"]), samples)
    return None


def question_of(group: Row) -> str:
    """The turns of a group's prompt."""
    return "\n\n".join(str(turn.get("content", "")) for turn in group["prompt"])


def shades(sample: Row) -> list[float]:
    """The credit of each token against the median token of its response: 0.5 stands for half as much again.

    A token that is not trained on, such as a tool's result, has an advantage of 0 and no shade.
    """
    advantage = list(sample.get("advantage") or [])
    trained = sorted(value for value in advantage if value)
    base = abs(trained[len(trained) // 2]) if trained else 0.0
    return [(value - math.copysign(base, value)) / base if base and value else 0.0 for value in advantage]


def spread(sample: Row) -> float:
    """The largest shade of a response."""
    return max((abs(shade) for shade in shades(sample)), default=0.0)


def _solved(groups: Sequence[Row]) -> dict[Any, Row]:
    return {_key(group): group for group in groups if group.get("samples")}


def _key(group: Row) -> tuple[str, str]:
    return question_of(group), str(group["answer"])


def _share(group: Row) -> float:
    return fmean([sample.get("outcome") == "correct" for sample in group["samples"]])


def _last(run: ComparedRun, groups: Mapping[Any, Row]) -> float | None:
    measured = [row["accuracy/eval"] for row in run.rows if row.get("accuracy/eval") is not None]
    return measured[-1] if measured else fmean(map(_share, groups.values())) if groups else None


def _one(group: Row) -> Row:
    """The first response with the outcome of most responses."""
    solved = _share(group) > SOLVED
    fitting = (sample for sample in group["samples"] if (sample.get("outcome") == "correct") == solved)
    return next(fitting, group["samples"][0])


def _contrasted(group: Row) -> Row:
    return max(group["samples"], key=lambda sample: (sample.get("outcome") != "correct", spread(sample)))
