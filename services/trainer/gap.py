"""A watch on `rollout/logp_gap`: the engine samples from the distribution that the trainer scores."""

from __future__ import annotations

from cepo.run.config import RunConfig

GAP_BOUNDS = {"float32": 1e-3, "bfloat16": 0.1}
"""The mean difference in nats a token, by data type, that rounding explains while both have the same weights. Runs of
the shipped model have 1e-7 and 6e-4; other rotary factors in the engine gave 0.9 to 1.05."""


class GapWatch:
    """Gives one warning if the gap of an on-policy step is above its bound."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._warned = False

    def warning(self, gap: float, step: int) -> str:
        """The warning on the gap of a step, the first time that it is above the bound; otherwise empty.

        With `loop.lag` later steps are off-policy, and their gap has other reasons. The engine's log-probs of a cut
        distribution at a temperature other than 1 are larger by the log of the kept mass, whatever the engine computes.
        """
        config, bound = self._config, GAP_BOUNDS[self._config.model.dtype]
        is_of_cut = bool(config.sampling.cut) and not config.raw_logprobs
        if self._warned or gap <= bound or is_of_cut or (step and config.loop.lag):
            return ""
        self._warned = True
        return (
            f"rollout/logp_gap is {gap:.3g} nats a token at step {step}, above {bound:g} in {config.model.dtype}: the "
            "engine does not sample from the distribution that the trainer scores. Its canary agrees, so its weights "
            "are right and its long or sampled sequences are not: compare rope, sliding window, quantisation and the "
            "data type of its cache with the trainer's"
        )
