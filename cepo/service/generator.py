"""What a rollout engine is asked and what it returns: the `Generator` protocol and its two data types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cepo.errors import UserError
from cepo.messages.groups import ImageRef, PolicyRef, Sampling
from cepo.service.adapters import Engine


@dataclass(frozen=True)
class SampledResponse:
    """One sampled response as an engine returns it."""

    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    """Log-prob of each token under the policy that sampled it."""
    finished: bool
    """True if the model ended the response, False if `max_tokens` cut it."""


@dataclass(frozen=True)
class RolloutPrompt:
    """The tokens and images that an engine samples from, the task's prefix included."""

    ids: tuple[int, ...]
    """As the model reads it: each image takes as many placeholders as it has tokens."""
    compact_ids: tuple[int, ...]
    """As vLLM takes it: one placeholder per image."""
    images: tuple[ImageRef, ...]

    def require_read(self, ids: Sequence[int]) -> None:
        """Checks that the engine read the same prompt as the teacher and the trainer will.

        Args:
            ids: the token ids that the engine reports.

        Raises:
            UserError: the token ids differ.
        """
        if tuple(ids) != self.ids:
            raise UserError(
                f"the engine read {len(ids)} tokens where the prompt with its images has {len(self.ids)}; "
                "its image processor differs from this service's; use the model that the run was started with"
            )


class Generator(Engine, Protocol):
    """An engine that samples with any loaded policy."""

    async def generate(
        self, prompt: RolloutPrompt, samples: int, sampling: Sampling, seed: int, policy: PolicyRef
    ) -> Sequence[SampledResponse]:
        """Samples `samples` responses; the same arguments give the same responses, up to the engine's numerics.

        Raises:
            UserError: an image is unavailable, or takes a different number of tokens than the prompt has for it.
        """
        ...
