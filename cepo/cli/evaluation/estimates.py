"""Estimates of accuracy from repeated samples: the mean and pass@k, with 95 % intervals.

pass@k is the unbiased estimator of Chen et al. (arXiv:2107.03374, equation 1). Its interval is for a mean over problems
(Miller, arXiv:2411.00640, section 2). The interval of the mean keeps the problems fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959964
"""The normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True)
class Tally:
    """The samples of one problem, and how many are correct."""

    correct: int
    samples: int


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % interval, clipped to [0, 1]; no interval where a single value gives no spread."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, value: float, variance: float | None) -> Estimate:
        """The estimate of a value with this variance; None gives no interval."""
        if variance is None:
            return cls(value)
        reach = Z95 * math.sqrt(variance)
        return cls(value, max(0.0, value - reach), min(1.0, value + reach))


def pass_at(tally: Tally, k: int) -> float:
    """The probability that k samples drawn without replacement hold a correct one: 1 - C(n - c, k) / C(n, k).

    Example: with 1 correct of 4 samples, pass@2 is 1 - C(3, 2) / C(4, 2) = 0.5.
    """
    return 1.0 - math.comb(tally.samples - tally.correct, k) / math.comb(tally.samples, k)


def pass_at_k(tallies: Sequence[Tally], k: int) -> Estimate:
    """The mean of pass@k; its interval is for other problems of the same kind."""
    shares = [pass_at(tally, k) for tally in tallies]
    count, mean = len(shares), sum(shares) / len(shares)
    if min(shares) == max(shares) and mean in (0.0, 1.0):
        unseen = Z95**2 / (count + Z95**2)  # Wilson's bound: all correct, or all wrong, is not certainty
        return Estimate(mean, 1.0 - unseen, 1.0) if mean else Estimate(mean, 0.0, unseen)
    if count == 1:
        return Estimate(mean)
    spread = sum((share - mean) ** 2 for share in shares) / (count - 1)
    return Estimate.of(mean, spread / count)


def mean_over_samples(tallies: Sequence[Tally]) -> Estimate:
    """The mean accuracy; its interval is for sampling the same problems again."""
    shares = [tally.correct / tally.samples for tally in tallies]
    mean = sum(shares) / len(shares)
    if min(tally.samples for tally in tallies) == 1:
        return Estimate(mean)
    variances = [share * (1 - share) / (tally.samples - 1) for share, tally in zip(shares, tallies, strict=True)]
    return Estimate.of(mean, sum(variances) / len(tallies) ** 2)


def ks_up_to(samples: int) -> tuple[int, ...]:
    """The values of k in the results. Example: ks_up_to(12) == (1, 2, 4, 8, 12)."""
    return (*(2**i for i in range(samples.bit_length()) if 2**i < samples), samples)
