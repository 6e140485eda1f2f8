"""The comparison of an engine's canary with the trainer's, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


CANARY_BOUNDS = {"float32": CanaryBounds(2e-4, 4e-4, 4e-3), "bfloat16": CanaryBounds(5e-2, 0.1, 1.0)}
"""By the engines' data type."""


def canary_fault(engine: Sequence[float], trainer: Sequence[float], dtype: str) -> str:
    """How an engine's log-probs differ from the trainer's, and the likely cause; empty if rounding explains it.

    Args:
        engine: the log-probs of the canary's scored tokens; those beyond the trainer's are not compared.
        trainer: the log-probs that the trainer computed.
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
    bounds = CANARY_BOUNDS[dtype]
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
        f"by {max(sizes):.2g} (at most {bounds.mean:g} and {bounds.largest:g} in {dtype}): {cause}"
    )


def _explained(gaps: Sequence[float], bounds: CanaryBounds) -> bool:
    sizes = [abs(gap) for gap in gaps]
    shift, mean = abs(sum(gaps)) / len(gaps), sum(sizes) / len(sizes)
    return shift <= bounds.shift and mean <= bounds.mean and max(sizes) <= bounds.largest
