"""Schedules as pure functions of the step, so that a resumed run needs only the step.

The first step is 0, or 1 if the published code of a method counts from 1.
"""

from __future__ import annotations

import math


def constant(value: float, step: int) -> float:
    """The same value at every step."""
    return value


def linear_decay(lam0: float, decay_steps: int, step: int) -> float:
    """Falls linearly from lam0 at step 0 to 0 at `decay_steps`, and stays 0 (arXiv:2605.19436, section 3).

    Raises:
        ValueError: decay_steps is below 1.
    """
    if decay_steps < 1:
        raise ValueError(f"decay_steps must be at least 1, got {decay_steps}")
    return lam0 * max(0.0, 1.0 - step / decay_steps)


def warmup_decay(lam0: float, warmup_steps: int, decay_steps: int, step: int) -> float:
    """Rises linearly over the warm-up, then falls like `linear_decay` (arXiv:2604.03128, whose code counts from 1)."""
    if step < warmup_steps:
        return lam0 * step / warmup_steps
    return linear_decay(lam0, decay_steps, step - warmup_steps)


def cosine_with_warmup(warmup_steps: int, total_steps: int, step: int) -> float:
    """Factor of the learning rate: rises linearly from 0 over the warm-up, then falls to 0 by half a cosine."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
