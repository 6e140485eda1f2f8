"""RLSD (arXiv:2604.03128): the evidence of the right answer against the evidence without a hint."""

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
    """RLSD (arXiv:2604.03128, Eqs 13 to 15): a token's credit grows if knowing the right answer favours the token.

    An evidence ratio with

        delta_t = log P_T(y_t | x, r+, y_<t) - log P_S(y_t | x, y_<t)

    where T is the teacher, r+ the right answer and S the student without a hint (arXiv:2605.19436, Eq. 4).
    """

    name: Literal["rlsd"] = "rlsd"
    decay_steps: int = Field(default=50, ge=1)
    """Number of steps in which the share of the evidence falls linearly to 0. 50 as in RLSD's paper; its script has
    60."""
    eps_w: float = Field(default=0.2, gt=0, lt=1)
    """Width of the clip of a weight: it stays within [1 - eps_w, 1 + eps_w]. 0.2 as in RLSD's paper and script."""
    student_logp: Literal["old", "current"] = "old"
    """Which student's log-probs are the denominator: those of the policy that sampled (old, as in CEPO's code), or
    those of the policy inside each loss (current, as in RLSD's code)."""
    negative_only: bool = False
    """Weighs only tokens with a negative advantage (an option of RLSD's code)."""
    thought_end: str = ""
    """Weighs only the tokens before this string, such as `</think>`, and none of a response without it, as in RLSD's
    code. Empty weighs all tokens."""

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

    def trained_advantages(self, batch: TrainBatch, adv_BT: Tensor, logp_BT: Tensor, step: int) -> Tensor:
        weighing = self._weighing_now(batch, adv_BT, logp_BT, step)
        return adv_BT if weighing is None else weighing.credit.adv_BT

    def diagnostics(self, batch: TrainBatch, adv_BT: Tensor, logp_BT: Tensor, step: int) -> Metrics:
        weighing = self._weighing_now(batch, adv_BT, logp_BT, step)
        return {} if weighing is None else self._metrics(batch, step, weighing)

    def _weighing(self, batch: TrainBatch, adv_BT: Tensor, step: int) -> Weighing | None:
        """With student_logp="current" the weights exist only inside the loss, which has the student's log-probs."""
        return super()._weighing(batch, adv_BT, step) if self.student_logp == "old" else None

    def _weighing_now(self, batch: TrainBatch, adv_BT: Tensor, logp_BT: Tensor, step: int) -> Weighing | None:
        """The weighing against the current student; None with student_logp="old" or if the step has no evidence."""
        evidence = self._evidence(batch)
        if self.student_logp == "old" or evidence is None:
            return None
        return self._weigh(batch, adv_BT, step, evidence[0], replace(evidence[0], logp_BT=logp_BT))

    def _may_weigh_BT(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        weighed_BT = super()._may_weigh_BT(batch, adv_BT)
        if self.thought_end:
            ends = [ends[0] if len(ends) > 1 else 0 for ends in batch.step_ends]  # one step: the thought does not end
            thought_B = torch.tensor(ends, device=adv_BT.device)
            weighed_BT = weighed_BT & (torch.arange(adv_BT.shape[1], device=adv_BT.device) < thought_B[:, None])
        return weighed_BT & (adv_BT < 0) if self.negative_only else weighed_BT
