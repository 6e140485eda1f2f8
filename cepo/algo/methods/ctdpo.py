"""Critical-token DPO (arXiv:2411.19943): DPO in which a token weighs by what two models of the pairs think of it.

One adapter on the frozen base learns the chosen responses and another the rejected ones, by maximum likelihood, while
the policy keeps still. Then they are frozen, and the contrast of the two weighs the tokens that the policy learns from.
Rank and modules of all three are those of the run.

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
"""The adapters of the chosen and of the rejected responses."""
METRICS = ("estimator/loss_right", "estimator/loss_wrong", "estimator/grad_norm_right", "estimator/grad_norm_wrong")
"""While the estimators learn: nats a token before each update, and gradients before clipping; means over updates."""
WEIGHTS = ("estimator/weight_chosen", "estimator/weight_rejected")
"""Mean weight of a token, once they are frozen."""


class CtDpo(Preference):
    """Every token weighs by its contrastive estimate, a rejected one by 1 less it."""

    name: Literal["ctdpo"] = "ctdpo"
    strength: float = Field(default=1.0, ge=0)
    """s of softmax((1 + s) log right - s log wrong)."""
    only_rejected: bool = False
    """Every chosen token weighs 1."""
    estimator_steps: int = Field(default=25, ge=1)
    """Steps at the start in which the estimators learn alone; then they are frozen."""
    estimator_lr: float = Field(default=3e-4, gt=0)

    def learns_at(self, step: int) -> bool:
        return step >= self.estimator_steps

    def auxiliary_model(self, context: AuxiliaryContext) -> Estimators:
        return Estimators(self, context)

    def advantages(self, batch: TrainBatch, step: int) -> Advantages:
        """No advantages; the metrics are the mean weights of the tokens, once the estimators are frozen."""
        advantages = super().advantages(batch, step)
        if batch.token_weight_BT is None:
            return advantages
        sides = (batch.mask_BT * of_B[:, None] for of_B in (batch.accuracy_B == 1, batch.accuracy_B == 0))
        means = [masked_mean(batch.token_weight_BT, side_BT) for side_BT in sides]
        return Advantages(advantages.adv_BT, dict(zip(WEIGHTS, means, strict=True)))


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
        """The batch with the weight of every token, once the policy learns."""
        ctdpo = self._ctdpo
        if not ctdpo.learns_at(step):
            return batch
        shares = {RIGHT: 1.0 + ctdpo.strength, WRONG: -ctdpo.strength}
        logp_BT = over_microbatches(
            self._context, batch, lambda part: self._context.blended_logp(shares, part), len(shares)
        )
        chosen_B = batch.accuracy_B == 1
        weight_BT = critical_weights(logp_BT.exp(), chosen_B, batch.mask_BT, only_rejected=ctdpo.only_rejected)
        return replace(batch, token_weight_BT=weight_BT)

    def update(self, batch: TrainBatch, step: int) -> Metrics:
        """Both on their own side of the pairs, in the mini-batches of the policy; nothing once it learns."""
        if self._ctdpo.learns_at(step):
            return {}
        minibatches = self._context.minibatches(batch)
        sums = torch.zeros(len(METRICS))
        for rows in minibatches:
            self.optimizer.zero_grad(set_to_none=True)
            found = [self._gradient(name, rows, batch) for name in ESTIMATORS]
            self.optimizer.step()
            sums += torch.tensor(found).T.flatten()  # losses, then norms
        return dict(zip(METRICS, (sums / len(minibatches)).tolist(), strict=True))

    def _gradient(self, name: str, rows: list[int], batch: TrainBatch) -> tuple[float, float]:
        """Of one estimator: its mean loss over the tokens of its side, and the gradient's norm; 0 without a token."""
        side_BT = batch.mask_BT * (batch.accuracy_B == float(name == RIGHT))[:, None]
        totals, loss = Totals.of(side_BT[rows]), torch.zeros(())
        if not totals.tokens:
            return 0.0, 0.0  # no gradient: the optimiser leaves it alone
        with self._context.using_adapter(name):
            for part in self._context.microbatches(batch, [row for row in rows if side_BT[row].any()]):
                logp_BT = self._context.logp(batch.rows(part))
                mask_BT: Tensor = side_BT[part, : logp_BT.shape[1]].to(logp_BT.device)
                one = aggregate(-logp_BT, mask_BT, "token-mean", totals)
                one.backward()
                loss += one.detach().cpu()
            self._context.all_reduce_sum([loss])
            self._context.all_reduce_gradients(self._adapters[name])
        return float(loss), float(nn.utils.clip_grad_norm_(self._adapters[name], self._context.max_grad_norm))
