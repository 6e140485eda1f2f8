"""DPO (arXiv:2305.18290): raises the chosen response of a pair over the rejected one, relative to the base model.

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
    """A loss on given pairs of a chosen and a rejected response; nothing is sampled.

        z = beta (sum_chosen w_t log(pi / pi_ref) - sum_rejected w_t log(pi / pi_ref))
        L = -(1 - label_smoothing) log sigmoid(z) - label_smoothing log sigmoid(-z), the mean over pairs

    pi_ref is the base model and w_t the weight of a token.
    """

    beta: float = Field(default=0.1, gt=0)
    """Strength of the pull to the base model, per nat of log-ratio. 0.1 as in the paper."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the pairs that are assumed to be labelled the wrong way round (conservative DPO). 0 as in the paper."""

    @property
    def asks(self) -> tuple[Ask, ...]:
        return (REFERENCE,)

    @property
    def offline(self) -> bool:
        return True

    def has_gradient_B(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        return in_groups_with(batch.mask_BT.any(dim=1), batch.group_B)  # an empty response is half of a pair, too

    def logp_old_BT(self, batch: TrainBatch) -> Tensor | None:
        return batch.rollout_logp_BT  # the loss has no ratio to an older policy: saves a forward pass

    def loss(
        self, student: Student, logp_old_BT: Tensor, batch: TrainBatch, adv_BT: Tensor, minibatch: TrainBatch
    ) -> LossOutput:
        reference_BT = batch.evidence[REFERENCE].logp_BT
        ratio_B = sequence_log_ratio(student.logp_BT, reference_BT, batch.mask_BT, batch.token_weight_BT)
        chosen_P, rejected_P = (ratio_B[_in_group_order(batch, accuracy)] for accuracy in (1.0, 0.0))
        loss_P = dpo_loss(chosen_P, rejected_P, beta=self.beta, label_smoothing=self.label_smoothing)
        pairs = len(minibatch.group_B.unique())
        chosen_P, rejected_P = chosen_P.detach(), rejected_P.detach()
        reports_P = {
            "preference/accuracy": (chosen_P > rejected_P).float(),
            "preference/margin": self.beta * (chosen_P - rejected_P),
            "preference/chosen": self.beta * chosen_P,
            "preference/rejected": self.beta * rejected_P,
        }
        tokens_per_pair = float(minibatch.mask_BT.sum()) / pairs  # the learner divides by tokens
        sums = {key: float(value_P.sum()) * tokens_per_pair for key, value_P in reports_P.items()}
        return LossOutput(loss_P.sum() / pairs, sums)


class Dpo(Preference):
    """DPO (arXiv:2305.18290, Eq. 7): raises the chosen response of a pair over the rejected one, without sampling.

        z = beta (log(pi(chosen) / pi_ref(chosen)) - log(pi(rejected) / pi_ref(rejected)))
        L = -log sigmoid(z), the mean over pairs

    pi_ref is the base model.
    """

    name: Literal["dpo"] = "dpo"


def _in_group_order(batch: TrainBatch, accuracy: float) -> Tensor:
    """The rows of the chosen (accuracy 1) or of the rejected (accuracy 0) responses, in the order of their pairs."""
    rows = (batch.accuracy_B == accuracy).nonzero().flatten()
    return rows[torch.argsort(batch.group_B[rows])]
