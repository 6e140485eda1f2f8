"""The exponential moving average of weights, for a teacher that follows the student slowly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def ema(previous: Mapping[str, Tensor], current: Mapping[str, Tensor], rate: float) -> dict[str, Tensor]:
    """(1 - rate) previous + rate current, for each name. Example: a decay of 0.95 is a rate of 0.05.

    The averages of the LoRA factors A and B are not factors of the average of BA. Pass merged weights if this matters.

    Returns:
        New tensors, in the type of `previous`. Keep them in float32: bfloat16 rounds away the steps of a small rate.

    Raises:
        ValueError: the rate is outside [0, 1], or the two have different names.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"rate must be within [0, 1], got {rate}")
    if previous.keys() != current.keys():
        raise ValueError(f"weights differ in {sorted(previous.keys() ^ current.keys())}")
    return {name: old.lerp(current[name].to(old), rate) for name, old in previous.items()}
