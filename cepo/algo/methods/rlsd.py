"""RLSD: the evidence of the right answer against none (arXiv:2604.03128)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cepo.algo.base import LossOutput, Metrics
from cepo.algo.batch import Student, TrainBatch
from cepo.algo.methods.evidence import EvidenceRatio, Weighing
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
    def reasoning_delimiter(self) -> str:
        return self.thought_end

    def loss(
        self, student: Student, logp_old_BT: Tensor, batch: TrainBatch, adv_BT: Tensor, minibatch: TrainBatch
    ) -> LossOutput:
        weighing = self._weighing_now(batch, adv_BT, student.logp_BT.detach(), batch.step)
        credited_BT = adv_BT if weighing is None else weighing.credit.adv_BT
        return super().loss(student, logp_old_BT, batch, credited_BT, minibatch)

    def diagnostics(self, batch: TrainBatch, adv_BT: Tensor, logp_BT: Tensor, step: int) -> Metrics:
        weighing = self._weighing_now(batch, adv_BT, logp_BT, step)
        return {} if weighing is None else self._metrics(batch, step, weighing)

    def _weighing(self, batch: TrainBatch, adv_BT: Tensor, step: int) -> Weighing | None:
        """With student_logp="current" the weights exist only inside the loss, which has the student's log-probs."""
        return super()._weighing(batch, adv_BT, step) if self.student_logp == "old" else None

    def _weighing_now(self, batch: TrainBatch, adv_BT: Tensor, logp_BT: Tensor, step: int) -> Weighing | None:
        """The weighing against the student as it is; None with student_logp="old", and where nothing was measured."""
        evidence = self._evidence(batch)
        if self.student_logp == "old" or evidence is None:
            return None
        return self._weigh(batch, adv_BT, step, evidence[0], replace(evidence[0], logp_BT=logp_BT))

    def _may_weigh_BT(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        weighed_BT = super()._may_weigh_BT(batch, adv_BT)
        if self.thought_end:
            thought_B = torch.tensor([ends[0] if ends else 0 for ends in batch.step_ends], device=adv_BT.device)
            weighed_BT = weighed_BT & (torch.arange(adv_BT.shape[1], device=adv_BT.device) < thought_B[:, None])
        return weighed_BT & (adv_BT < 0) if self.negative_only else weighed_BT
