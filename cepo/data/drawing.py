"""Problems, and the order in which a run draws them: a function of the seed, the position and recorded pass rates."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import cycle

from cepo.data.columns import CONVENTIONS, Columns
from cepo.messages.groups import ImageRef, Message

PassRates = Mapping[int, float]
"""The share of correct responses in a problem's newest group, by its row."""
LEAST_WEIGHT = 0.05
"""Of a problem that was answered always or never: it is tried again now and then, as the policy changes."""


@dataclass(frozen=True)
class Problem:
    """One prompt and its reference answer, reduced to the answer itself."""

    messages: tuple[Message, ...]
    answer: str
    row: int = field(default=-1, compare=False)
    """Position of its row in the data set, from 0."""
    tokens: int = field(default=0, compare=False)
    """Length of the prompt with the right answer, or the solution, as hint; image tokens count too."""
    images: tuple[ImageRef, ...] = ()
    solution: str = field(default="", compare=False)
    """A worked solution; empty unless the run names its column."""
    rejected: str = ""
    """The rejected response of a pair; `answer` is then the whole chosen response."""
    source: str = ""
    """The title of its source, if the run trains on several."""
    columns: str = field(default="", compare=False)
    """The row as a JSON object, for its environment; empty without one."""


@dataclass(frozen=True)
class Problems:
    """The usable problems of a data set, and the reasons why other rows were dropped."""

    problems: tuple[Problem, ...]
    dropped: tuple[str, ...]
    source: str = ""
    """Where the problems come from, such as "data.train=/data/train.jsonl"."""
    columns: Columns = CONVENTIONS[0]
    rows: int = 0
    """Number of rows of the data set."""
    shares: tuple[float, ...] = (1.0,)
    """The weights of the sources, in the order of their problems."""

    def at(self, position: int, seed: int) -> Problem:
        """The problem at a position of the endless training order, in which every epoch is shuffled anew.

        A function of the seed and the position alone: with 4 problems, positions 0 to 3 are the first epoch. Several
        sources take turns: with shares 3 and 1, as 0, 0, 1, 0 and so on.
        """
        source, nth = _turn(self.shares, position)
        problems = self._sources[source]
        epoch, offset = divmod(nth, len(problems))
        return problems[_order(len(problems), seed, source, epoch)[offset]]

    def drawn(self, step: int, prompts: int, seed: int, rates: PassRates) -> list[Problem]:
        """The problems of a step, drawn by their pass rates.

        A problem has the weight 4 r (1 - r), at least `LEAST_WEIGHT`, where r is its pass rate, and 1 before it was
        ever tried. A step draws no problem twice, unless its source has fewer problems than the step takes of it.
        """
        turns = [_turn(self.shares, position)[0] for position in range(step * prompts, (step + 1) * prompts)]
        drawn = [self._draw(source, f"{seed}-{source}-pass-rate-{step}", rates) for source in range(len(self.shares))]
        return [next(drawn[source]) for source in turns]

    def _draw(self, source: int, name: str, rates: PassRates) -> Iterator[Problem]:
        """The problems of a source in a weighted random order (Efraimidis and Spirakis, 2006), again and again."""
        problems, rng = self._sources[source], random.Random(name)
        keys = [-math.log(1.0 - rng.random()) / weight(rates.get(problem.row)) for problem in problems]
        return cycle([problems[at] for at in sorted(range(len(problems)), key=keys.__getitem__)])

    @cached_property
    def _sources(self) -> list[list[Problem]]:
        sources: dict[str, list[Problem]] = {}
        for problem in self.problems:
            sources.setdefault(problem.source, []).append(problem)
        return list(sources.values())


def weight(rate: float | None) -> float:
    """The weight of a problem with a pass rate; None: it was never tried."""
    return 1.0 if rate is None else max(LEAST_WEIGHT, 4.0 * rate * (1.0 - rate))


def _turn(shares: tuple[float, ...], position: int) -> tuple[int, int]:
    """The source at a position, and how often it had its turn before."""
    return (0, position) if len(shares) == 1 else _turns(shares, 1 << position.bit_length())[position]


@lru_cache(maxsize=4)
def _turns(shares: tuple[float, ...], count: int) -> list[tuple[int, int]]:
    """The source of each of the first positions: always the one that is furthest behind its share."""
    total, taken = sum(shares), [0] * len(shares)
    turns: list[tuple[int, int]] = []
    for position in range(1, count + 1):
        behind = [share / total * position - had for share, had in zip(shares, taken, strict=True)]
        source = behind.index(max(behind))
        turns.append((source, taken[source]))
        taken[source] += 1
    return turns


@lru_cache(maxsize=16)
def _order(count: int, seed: int, source: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}-{epoch}" if source == 0 else f"{seed}-{source}-{epoch}").shuffle(order)
    return order
