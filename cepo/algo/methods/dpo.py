"""DPO (arXiv:2305.18290): the chosen response of a pair over the rejected one, relative to the base model; no rollouts.

Shapes: P pairs, B sequences, T response tokens (padded).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cepo.algo.base import Algorithm, LossOutput
from cepo.algo.batch import Student, TrainBatch
from cepo.algo.methods.evidence import in_groups_with
from cepo.algo.methods.policy_gradient import REFERENCE
from cepo.algo.preference import dpo_loss, sequence_log_ratio
from cepo.messages.groups import Ask


class Preference(Algorithm):
    """-log sigmoid(beta (log-ratio of the chosen - log-ratio of the rejected)), the mean over pairs."""

    beta: float = Field(default=0.1, gt=0)
    """Pull to the base model."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the pairs taken to be labelled the wrong way round."""

    @property
    def asks(self) -> tuple[Ask, ...]:
        return (REFERENCE,)

    @property
    def offline(self) -> bool:
        return True

    def has_gradient_B(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        return in_groups_with(batch.mask_BT.any(dim=1), batch.group_B)  # an empty response is half of a pair too

    def logp_old_BT(self, batch: TrainBatch) -> Tensor | None:
        return batch.rollout_logp_BT  # no ratio to an older policy is taken: the pass for it is saved

    def loss(
        self, student: Student, logp_old_BT: Tensor, batch: TrainBatch, adv_BT: Tensor, minibatch: TrainBatch
    ) -> LossOutput:
        measured = batch.evidence[REFERENCE].logp_BT, batch.mask_BT, batch.token_weight_BT
        ratio_B = sequence_log_ratio(student.logp_BT, *measured)
        chosen_P, rejected_P = (ratio_B[_in_group_order(batch, kind)] for kind in (1.0, 0.0))
        loss_P = dpo_loss(chosen_P, rejected_P, beta=self.beta, label_smoothing=self.label_smoothing)
        pairs = len(minibatch.group_B.unique())
        chosen_P, rejected_P = chosen_P.detach(), rejected_P.detach()
        reports_P = {
            "preference/accuracy": (chosen_P > rejected_P).float(),
            "preference/margin": self.beta * (chosen_P - rejected_P),
            "preference/chosen": self.beta * chosen_P,
            "preference/rejected": self.beta * rejected_P,
        }
        tokens_a_pair = float(minibatch.mask_BT.sum()) / pairs  # the learner divides by tokens
        sums = {key: float(value_P.sum()) * tokens_a_pair for key, value_P in reports_P.items()}
        return LossOutput(loss_P.sum() / pairs, sums)


class Dpo(Preference):
    """Every token of a response counts the same."""

    name: Literal["dpo"] = "dpo"


def _in_group_order(batch: TrainBatch, accuracy: float) -> Tensor:
    rows = (batch.accuracy_B == accuracy).nonzero().flatten()
    return rows[torch.argsort(batch.group_B[rows])]
