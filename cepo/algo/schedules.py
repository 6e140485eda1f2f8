"""Schedules as pure functions of the step: a resumed run needs nothing but the step.

The first step counts 0, or 1 where a method's code counts from 1.
"""

from __future__ import annotations

import math


def constant(value: float, step: int) -> float:
    """The same value at every step."""
    return value


def linear_decay(lam0: float, decay_steps: int, step: int) -> float:
    """lam0 at 0, falling linearly to 0 at `decay_steps` and after (arXiv:2605.19436, section 3).

    Raises:
        ValueError: there is not a step to fall in.
    """
    if decay_steps < 1:
        raise ValueError(f"decay_steps must be at least 1, got {decay_steps}")
    return lam0 * max(0.0, 1.0 - step / decay_steps)


def warmup_decay(lam0: float, warmup_steps: int, decay_steps: int, step: int) -> float:
    """Rises linearly over the warm-up, then falls as `linear_decay` (arXiv:2604.03128, whose code counts from 1)."""
    if step < warmup_steps:
        return lam0 * step / warmup_steps
    return linear_decay(lam0, decay_steps, step - warmup_steps)


def cosine_with_warmup(warmup_steps: int, total_steps: int, step: int) -> float:
    """Learning-rate factor: rises linearly from 0 over the warm-up, then half a cosine down to 0, where it stays."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
