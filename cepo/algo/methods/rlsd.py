"""RLSD: the evidence of the right answer against none (arXiv:2604.03128)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cepo.algo.base import LossOutput
from cepo.algo.batch import Measured, Student, TrainBatch
from cepo.algo.core import Credit
from cepo.algo.methods.evidence import EvidenceRatio
from cepo.messages.groups import Ask, ContextName, Weights


class Rlsd(EvidenceRatio):
    """RLSD: does knowing the answer favour this token?"""

    name: Literal["rlsd"] = "rlsd"
    decay_steps: int = Field(default=50, ge=1)
    eps_w: float = Field(default=0.2, gt=0, lt=1)
    student_logp: Literal["old", "current"] = "old"
    """The plain evidence: of the policy that sampled, or of the policy as it is being updated (RLSD's code)."""
    negative_only: bool = False
    """Weigh only the tokens of a negative advantage."""
    thought_end: str = ""
    """Weigh only the tokens before this mark, such as `</think>`; all where it is missing, or where none is named."""

    @property
    def contrast(self) -> tuple[Ask, ...]:
        plain = Ask(context=ContextName.PLAIN, weights=Weights.POLICY)
        return (self._numerator(), plain) if self.student_logp == "old" else (self._numerator(),)

    @property
    def steps_at(self) -> str:
        return self.thought_end

    def loss(
        self, student: Student, logp_old_BT: Tensor, batch: TrainBatch, adv_BT: Tensor, whole: TrainBatch
    ) -> LossOutput:
        found = self._measured(batch)
        if self.student_logp == "old" or found is None:
            return super().loss(student, logp_old_BT, batch, adv_BT, whole)
        parts = self._weigh(adv_BT, found[0].logp_BT, student.logp_BT.detach(), batch, batch.step)
        return super().loss(student, logp_old_BT, batch, parts.adv_BT, whole)

    def _credit(self, batch: TrainBatch, step: int) -> Credit | None:
        """Where the loss puts the weights on, they are known once it saw the student: none before the update."""
        if self.student_logp == "old":
            return super()._credit(batch, step)
        found = self._measured(batch)
        if found is None or batch.logp_BT is None:
            return None
        return self._weigh(self.base_advantages(batch), found[0].logp_BT, batch.logp_BT, batch, step)

    def _ratio(self, found: Sequence[Measured]) -> tuple[Measured, Measured]:
        return found[0], found[-1]  # one and the same where the student is measured in the loss

    def _weighed_BT(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        weighed_BT = super()._weighed_BT(batch, adv_BT)
        if self.thought_end:
            thought_B = torch.tensor([ends[0] if ends else 0 for ends in batch.step_ends], device=adv_BT.device)
            weighed_BT = weighed_BT & (torch.arange(adv_BT.shape[1], device=adv_BT.device) < thought_B[:, None])
        return weighed_BT & (adv_BT < 0) if self.negative_only else weighed_BT
