"""DAPO (arXiv:2503.14476): GRPO with clip-higher, a token mean and dynamic sampling.

The soft overlong punishment is an option of the reward, `reward.overlong_buffer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from cepo.algo.base import Supply
from cepo.algo.methods.policy_gradient import PolicyGradient
from cepo.messages.groups import EvidencedGroup, PromptTask


class Dapo(PolicyGradient):
    """DAPO (arXiv:2503.14476, Eq. 8): GRPO on groups with correct and wrong responses, sampled until there are enough.

    Groups in which every response or no response is correct have no gradient. They are dropped, and prompts that the
    step has not used are sampled in their place:

        0 < number of correct responses < group size

    The loss is GRPO's clipped surrogate with clip_low 0.2 and clip_high 0.28, as a mean over all tokens.
    """

    name: Literal["dapo"] = "dapo"
    dual_clip: float | None = Field(default=10.0, gt=1)
    """Bounds the loss of a token with A < 0 at -A x dual_clip. 10 as in the published recipe."""
    max_tries: int = Field(default=10, ge=1)
    """A step samples at most max_tries x `sampling.prompts` prompts. 10 as in EasyR1's script."""

    def follow_up(self, groups: Sequence[EvidencedGroup], step: int, supply: Supply) -> tuple[PromptTask, ...]:
        missing = supply.prompts - sum(map(is_mixed, groups))
        room = self.max_tries * supply.prompts - len(groups)
        return supply.draw(min(missing, room)) if missing > 0 and room > 0 else ()

    def select(self, groups: Sequence[EvidencedGroup], supply: Supply) -> Sequence[EvidencedGroup]:
        """The first mixed groups, as many as the step has prompts; all groups if none is mixed."""
        return [group for group in groups if is_mixed(group)][: supply.prompts] or groups


def is_mixed(group: EvidencedGroup) -> bool:
    """Whether a group has correct and wrong responses. Responses without a verdict do not count, nor do rewards."""
    accuracies = [verdict.accuracy for verdict in group.scored.verdicts if not verdict.failed]
    return 0 < sum(accuracies) < len(accuracies)
