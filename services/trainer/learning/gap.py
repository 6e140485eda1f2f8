"""A watch on `rollout/logp_gap`: the engine samples from the distribution that the trainer scores."""

from __future__ import annotations

import logging

from cepo.run.config import RunConfig

log = logging.getLogger(__name__)

GAP_BOUNDS = {"float32": 1e-3, "bfloat16": 0.1}
"""The mean difference in nats a token, by data type, that rounding explains while both have the same weights. Runs of
the shipped model have 1e-7 and 6e-4; other rotary factors in the engine gave 0.9 to 1.05."""


class GapWatch:
    """Warns once if the gap of an on-policy step is above its bound."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._warned = False

    def watch(self, gap: float, step: int) -> None:
        """Looks at the gap of a step. With `loop.lag` later steps are off-policy, and their gap has other reasons."""
        bound = GAP_BOUNDS[self._config.model.dtype]
        if self._warned or gap <= bound or (step and self._config.loop.lag):
            return
        self._warned = True
        cut = self._config.sampling.cut
        cause = (
            f"sampling.{cut} cuts the engine's distribution"
            if cut
            else "its canary agrees, so its weights are right and what it does with long or sampled sequences is not: "
            "compare rope, sliding window, quantisation and the data type of its cache with the trainer's"
        )
        log.warning(
            "rollout/logp_gap is %.3g nats a token at step %d, above %g in %s: the engine does not sample from the "
            "distribution that the trainer scores; %s",
            gap,
            step,
            bound,
            self._config.model.dtype,
            cause,
        )
