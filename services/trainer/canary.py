"""The comparison of an engine's canary with the trainer's, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from cepo.prompts.canary import FIRST_PLACES, canary_places


@dataclass(frozen=True)
class CanaryBounds:
    """The largest differences, in nats, that rounding explains."""

    shift: float
    """Of the mean log-prob: rounding has no direction."""
    mean: float
    """Of a token's log-prob on average, without its sign."""
    largest: float
    """Of one token's log-prob."""


EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-7}
"""The spacing of each data type at 1."""
LEAST = CanaryBounds(2e-4, 4e-4, 4e-3)
"""Bounds below which no difference is told, in float32 above all."""
SPREAD, PEAK = 2.0, 12.0
"""Standard deviation of a token's logits over the vocabulary, and their largest magnitude, of trained models."""


def canary_bounds(dtype: str, layers: int) -> CanaryBounds:
    """The bounds for a model of L layers in a data type with the spacing eps.

    As `cepo.model.probe.rounding_bound` derives, two passes differ in a logit by independent errors of 0.7 eps sqrt(L)
    of the spread of the logits; the engine rounds each logit once more, by 0.29 eps of its magnitude on average:

        sigma = eps sqrt((0.7 sqrt(L) spread)^2 + (0.29 peak)^2)

    The mean size of such an error is 0.8 sigma, and the bound is twice that. Over the canary's 15 tokens and more the
    mean with its sign is within 0.26 sigma, and the bound three times that. One token may differ by 16 sigma, four
    times what forty tokens stay within: where the model is unsure, errors are not independent.

    Example: 28 layers in bfloat16 give 0.051, 0.1 and 1.0 nats; 64 layers 0.073, 0.15 and 1.5.
    """
    sigma = EPS[dtype] * math.hypot(0.7 * math.sqrt(layers) * SPREAD, 0.29 * PEAK)
    derived = (0.8 * sigma, 1.6 * sigma, 16 * sigma)
    return CanaryBounds(*(max(pair) for pair in zip(derived, astuple(LEAST), strict=True)))


def canary_fault(engine: Sequence[float], trainer: Sequence[float], dtype: str, layers: int) -> str:
    """How an engine's log-probs differ from the trainer's, and the likely cause; empty if rounding explains it.

    Args:
        engine: the log-probs of the canary's scored tokens; those beyond the trainer's are not compared.
        trainer: the log-probs that the trainer computed.
        dtype: the engines' data type.
        layers: of the model.
    """
    if not trainer:
        return "the trainer has not scored the canary yet"
    if len(engine) < len(trainer):
        return (
            f"the engine scored {len(engine)} of {len(trainer)} canary tokens: its longest sequence is below "
            "model.max_length"
        )
    gaps = [ours - theirs for ours, theirs in zip(engine, trainer, strict=False)]
    if not all(map(math.isfinite, gaps)):
        return "the log-probs of the canary are not finite"
    bounds = canary_bounds(dtype, layers)
    if _explained(gaps, bounds):
        return ""
    sizes = [abs(gap) for gap in gaps]
    first = gaps[: FIRST_PLACES - 1]
    place = canary_places(2**40)[sizes.index(max(sizes))]
    cause = (
        "the engine computes far positions otherwise (rotary factors, sliding window); lower model.max_length"
        if len(gaps) > len(first) and _explained(first, bounds)
        else "the engine does not serve the weights that were trained"
    )
    return (
        f"the log-probs of the canary differ by {sum(sizes) / len(sizes):.2g} nats a token, most at position {place} "
        f"by {max(sizes):.2g} (at most {bounds.mean:.2g} and {bounds.largest:.2g} in {dtype}): {cause}"
    )


def _explained(gaps: Sequence[float], bounds: CanaryBounds) -> bool:
    sizes = [abs(gap) for gap in gaps]
    shift, mean = abs(sum(gaps)) / len(gaps), sum(sizes) / len(sizes)
    return shift <= bounds.shift and mean <= bounds.mean and max(sizes) <= bounds.largest
