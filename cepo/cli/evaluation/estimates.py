"""Accuracy from repeated samples: mean, pass@k, and how far off they may be. Pure arithmetic.

pass@k is the unbiased estimator of Chen et al. (arXiv:2107.03374, equation 1). Its interval is that of a mean over
problems, as in Miller (arXiv:2411.00640, section 2); the mean's other interval holds the problems fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959964
"""Normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True)
class Tally:
    """One problem: how many of its samples are right."""

    correct: int
    samples: int


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % interval, cut to [0, 1]; without one where a single value says nothing of the spread."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, value: float, variance: float | None) -> Estimate:
        """From the variance of the value."""
        if variance is None:
            return cls(value)
        reach = Z95 * math.sqrt(variance)
        return cls(value, max(0.0, value - reach), min(1.0, value + reach))


def pass_at(tally: Tally, k: int) -> float:
    """Chance that k samples drawn without replacement hold a right one: 1 - C(n - c, k) / C(n, k)."""
    return 1.0 - math.comb(tally.samples - tally.correct, k) / math.comb(tally.samples, k)


def pass_at_k(tallies: Sequence[Tally], k: int) -> Estimate:
    """Mean pass@k; the interval says how it would move with other problems of the same kind."""
    shares = [pass_at(tally, k) for tally in tallies]
    count, mean = len(shares), sum(shares) / len(shares)
    if min(shares) == max(shares) and mean in (0.0, 1.0):
        unseen = Z95**2 / (count + Z95**2)  # Wilson's bound: all right, or all wrong, is not certainty
        return Estimate(mean, 1.0 - unseen, 1.0) if mean else Estimate(mean, 0.0, unseen)
    if count == 1:
        return Estimate(mean)
    spread = sum((share - mean) ** 2 for share in shares) / (count - 1)
    return Estimate.of(mean, spread / count)


def mean_over_samples(tallies: Sequence[Tally]) -> Estimate:
    """Mean accuracy; the interval says how it would move if the same problems were sampled again."""
    shares = [tally.correct / tally.samples for tally in tallies]
    mean = sum(shares) / len(shares)
    if min(tally.samples for tally in tallies) == 1:
        return Estimate(mean)
    variances = [share * (1 - share) / (tally.samples - 1) for share, tally in zip(shares, tallies, strict=True)]
    return Estimate.of(mean, sum(variances) / len(tallies) ** 2)


def sizes_up_to(samples: int) -> tuple[int, ...]:
    """The k to show: powers of two below the number of samples, and that number."""
    return (*(2**i for i in range(samples.bit_length()) if 2**i < samples), samples)
