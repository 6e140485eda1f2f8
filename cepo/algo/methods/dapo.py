"""DAPO (arXiv:2503.14476): clip-higher, token mean, and groups that teach something, resampled until there are enough.

Its soft overlong punishment is a reward option of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from cepo.algo.base import Supply
from cepo.algo.methods.policy_gradient import PolicyGradient
from cepo.messages.groups import EvidencedGroup, PromptTask


class Dapo(PolicyGradient):
    """Dynamic sampling: groups in which all or none are correct are dropped, and others sampled in their place."""

    name: Literal["dapo"] = "dapo"
    dual_clip: float | None = Field(default=10.0, gt=1)
    max_tries: int = Field(default=10, ge=1)
    """A step samples at most this many times its number of prompts."""

    def follow_up(self, groups: Sequence[EvidencedGroup], step: int, supply: Supply) -> tuple[PromptTask, ...]:
        missing = supply.prompts - sum(map(teaches, groups))
        room = self.max_tries * supply.prompts - len(groups)
        return supply.draw(min(missing, room)) if missing > 0 and room > 0 else ()

    def select(self, groups: Sequence[EvidencedGroup], supply: Supply) -> Sequence[EvidencedGroup]:
        """The first groups that teach something, as many as the step has prompts; all where none does."""
        return [group for group in groups if teaches(group)][: supply.prompts] or groups


def teaches(group: EvidencedGroup) -> bool:
    """Whether some responses of a group are correct and some are not, whatever their rewards; one without a verdict is
    neither.
    """
    accuracies = [verdict.accuracy for verdict in group.scored.verdicts if not verdict.failed]
    return 0 < sum(accuracies) < len(accuracies)
