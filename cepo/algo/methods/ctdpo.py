"""Critical-token DPO (arXiv:2411.19943): DPO in which two models of the pairs weigh every token.

One adapter on the frozen base learns the chosen responses and another the rejected ones, by maximum likelihood, while
the policy does not learn. Then both are frozen, and their contrast weighs the tokens of the policy's loss. All three
adapters have the rank and the target modules of the run.

Shapes: B sequences, T response tokens (padded).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cepo.algo.auxiliary import AuxiliaryContext, TrainedAuxiliaryModel, over_microbatches
from cepo.algo.base import Advantages, Metrics
from cepo.algo.batch import TrainBatch
from cepo.algo.core import masked_mean
from cepo.algo.losses import Totals, aggregate
from cepo.algo.methods.dpo import Preference
from cepo.algo.preference import critical_weights

RIGHT, WRONG = "right", "wrong"
ESTIMATORS = (RIGHT, WRONG)
"""The adapters that learn the chosen and the rejected responses."""
METRICS = ("estimator/loss_right", "estimator/loss_wrong", "estimator/grad_norm_right", "estimator/grad_norm_wrong")
"""While the estimators learn: the loss in nats per token before each update and the gradient norm before clipping, both
averaged over the step's updates."""
WEIGHTS = ("estimator/weight_chosen", "estimator/weight_rejected")
"""Once the estimators are frozen: the mean weight of a token."""


class CtDpo(Preference):
    """Critical-token DPO (arXiv:2411.19943): DPO with a weight for every token of a response.

        c_t = softmax((1 + strength) log P_right - strength log P_wrong) at y_t
        w_t = c_t in a chosen response, 1 - c_t in a rejected one
        z   = beta (sum_chosen w_t log(pi / pi_ref) - sum_rejected w_t log(pi / pi_ref))
        L   = -log sigmoid(z), the mean over pairs

    P_right and P_wrong are two adapters, trained on the chosen and on the rejected responses in the first steps.
    """

    name: Literal["ctdpo"] = "ctdpo"
    strength: float = Field(default=1.0, ge=0)
    """Strength s of the contrast softmax((1 + s) log P_right - s log P_wrong). 1 as in the paper's code."""
    only_rejected: bool = False
    """Gives every chosen token the weight 1 (`only_neg` in the paper's code)."""
    estimator_steps: int = Field(default=25, ge=1)
    """Number of steps at the start in which only the two adapters learn."""
    estimator_lr: float = Field(default=3e-4, gt=0)
    """Learning rate of the two adapters."""

    def learns_at(self, step: int) -> bool:
        return step >= self.estimator_steps

    def auxiliary_model(self, context: AuxiliaryContext) -> Estimators:
        return Estimators(self, context)

    def advantages(self, batch: TrainBatch, step: int) -> Advantages:
        """No advantages; the metrics are the mean weights of the tokens, once the estimators are frozen."""
        advantages = super().advantages(batch, step)
        if (weight_BT := batch.token_weight_BT) is None:
            return advantages
        metrics = {
            "estimator/weight_chosen": masked_mean(weight_BT, batch.mask_BT * (batch.accuracy_B == 1)[:, None]),
            "estimator/weight_rejected": masked_mean(weight_BT, batch.mask_BT * (batch.accuracy_B == 0)[:, None]),
        }
        return Advantages(advantages.adv_BT, metrics)


class Estimators(TrainedAuxiliaryModel):
    """The models of the chosen and of the rejected responses of a run."""

    def __init__(self, ctdpo: CtDpo, context: AuxiliaryContext) -> None:
        adapters = {name: nn.ParameterList(context.add_adapter(name)) for name in ESTIMATORS}
        super().__init__(nn.ModuleDict(adapters), ctdpo.estimator_lr)
        self._adapters = adapters
        self._ctdpo = ctdpo
        self._context = context

    @torch.no_grad()
    def prepare(self, batch: TrainBatch, step: int) -> TrainBatch:
        """Returns the batch with the weight of every token, once the policy learns."""
        ctdpo = self._ctdpo
        if not ctdpo.learns_at(step):
            return batch
        shares = {RIGHT: 1.0 + ctdpo.strength, WRONG: -ctdpo.strength}
        logp_BT = over_microbatches(
            self._context, batch, lambda micro: self._context.blended_logp(shares, micro), len(shares)
        )
        chosen_B = batch.accuracy_B == 1
        weight_BT = critical_weights(logp_BT.exp(), chosen_B, batch.mask_BT, only_rejected=ctdpo.only_rejected)
        return replace(batch, token_weight_BT=weight_BT)

    def update(self, batch: TrainBatch, step: int) -> Metrics:
        """Trains each adapter on its side of the pairs, in the minibatches of the policy; does nothing once it
        learns."""
        if self._ctdpo.learns_at(step):
            return {}
        minibatches = self._context.minibatches(batch)
        sums = {key: torch.zeros(()) for key in METRICS}
        for rows in minibatches:
            self.optimizer.zero_grad(set_to_none=True)
            for name in ESTIMATORS:
                loss, grad_norm = self._gradient(name, rows, batch)
                sums[f"estimator/loss_{name}"] += loss
                sums[f"estimator/grad_norm_{name}"] += grad_norm
            self.take_step()
        return {key: float(value / len(minibatches)) for key, value in sums.items()}

    def _gradient(self, name: str, rows: list[int], batch: TrainBatch) -> tuple[float, float]:
        """Accumulates the gradient of one adapter over a minibatch.

        Returns:
            The mean loss over the tokens of the adapter's side, and the norm of its gradient before clipping. If the
            side has no token, both are 0 and there is no gradient.
        """
        side_BT = batch.mask_BT * (batch.accuracy_B == float(name == RIGHT))[:, None]
        totals, loss = Totals.of(side_BT[rows]), torch.zeros(())
        if not totals.tokens:
            return 0.0, 0.0
        with self._context.using_adapter(name):
            for part in self._context.microbatches(batch, [row for row in rows if side_BT[row].any()]):
                logp_BT = self._context.logp(batch.rows(part))
                mask_BT: Tensor = side_BT[part, : logp_BT.shape[1]].to(logp_BT.device)
                micro_loss = aggregate(-logp_BT, mask_BT, "token-mean", totals)
                micro_loss.backward()
                loss += micro_loss.detach().cpu()
            self._context.all_reduce_sum([loss])
            self._context.all_reduce_gradients(self._adapters[name])
        return float(loss), float(nn.utils.clip_grad_norm_(self._adapters[name], self._context.max_grad_norm))
