"""PPO with a critic (arXiv:1707.06347): an adapter of its own on the frozen base, and a linear head for every token.

Values are those of the state that predicts the token, before the update; advantages and returns follow verl's recursion
(`cepo.algo.advantages.gae`), the value loss is clipped (`cepo.algo.value`).

Shapes: B sequences, T response tokens (padded), N tokens, D hidden units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cepo.algo.advantages import gae, terminal_reward
from cepo.algo.auxiliary import AuxiliaryContext, TrainedAuxiliaryModel, over_microbatches
from cepo.algo.base import Metrics
from cepo.algo.batch import TrainBatch
from cepo.algo.core import masked_mean
from cepo.algo.kl import KlForm
from cepo.algo.losses import Totals, aggregate
from cepo.algo.methods.policy_gradient import PolicyGradient
from cepo.algo.value import value_clipped, value_terms

ADAPTER = "critic"
METRICS = (
    "critic/loss",
    "critic/clip_fraction",
    "critic/grad_norm",
    "critic/explained_variance",
    "critic/value_mean",
    "critic/return_mean",
)
"""Explained variance and means: of the values before the update, over the tokens that the critic learns from."""


class Ppo(PolicyGradient):
    """Clipped policy gradient on generalised advantages, with a divergence in the reward."""

    name: Literal["ppo"] = "ppo"
    estimator: Literal["gae"] = "gae"  # type: ignore[assignment]  # the one estimator that needs a critic
    clip_high: float = Field(default=0.2, gt=0)
    kl_coef: float = Field(default=1e-3, ge=0)
    kl_form: KlForm = "kl"
    kl_in: Literal["loss", "reward"] = "reward"
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    critic_lr: float = Field(default=1e-5, gt=0)
    critic_warmup: int = Field(default=0, ge=0)
    """Steps at the start in which the critic learns alone."""
    value_clip: float = Field(default=0.5, gt=0)
    """How far a value may move in a step."""

    def learns_at(self, step: int) -> bool:
        return step >= self.critic_warmup

    def auxiliary_model(self, context: AuxiliaryContext) -> Critic:
        return Critic(self, context)

    def valued_BT(self, batch: TrainBatch) -> Tensor:
        """The tokens that have a return."""
        return self.loss_mask_BT(batch) * batch.reward_B.isfinite()[:, None]

    def base_advantages(self, batch: TrainBatch) -> Tensor:
        return self.advantages_and_returns(batch)[0]

    def advantages_and_returns(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """adv_BT whitened, and return_BT, of a batch with values; 0 where a token has no return."""
        assert batch.value_BT is not None, "a batch meets the critic first"
        valued_BT = self.valued_BT(batch)
        token_reward_BT = terminal_reward(batch.reward_B, valued_BT) + self._penalty_BT(batch)
        return gae(token_reward_BT, batch.value_BT, valued_BT, gamma=self.gamma, lam=self.gae_lambda)


class ValueHead(nn.Linear):
    """hidden_ND -> value_N in float32; all values are 0 at first."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        return super().forward(hidden_ND.float()).squeeze(1)


@dataclass
class _Sums:
    """What an update adds up: losses of mini-batches, tokens whose clip binds, gradient norms."""

    loss: float = 0.0
    clipped: float = 0.0
    norm: float = 0.0


class Critic(TrainedAuxiliaryModel):
    """The value model of a run."""

    def __init__(self, ppo: Ppo, context: AuxiliaryContext) -> None:
        adapter = context.add_adapter(ADAPTER)
        head = ValueHead(context.hidden_size).to(adapter[0].device)
        super().__init__(nn.ModuleDict({"adapter": nn.ParameterList(adapter), "head": head}), ppo.critic_lr)
        self._ppo = ppo
        self._context = context
        self._head = head

    @torch.no_grad()
    def prepare(self, batch: TrainBatch, step: int) -> TrainBatch:
        """The batch with the value of every token."""
        with self._context.using_adapter(ADAPTER):
            value_BT = over_microbatches(self._context, batch, lambda part: self._context.apply_head(self._head, part))
        return replace(batch, value_BT=value_BT)

    def update(self, batch: TrainBatch, step: int) -> Metrics:
        """The value loss, in the mini-batches of the policy."""
        _, return_BT = self._ppo.advantages_and_returns(batch)
        minibatches, sums = self._context.minibatches(batch), _Sums()
        with self._context.using_adapter(ADAPTER):
            for rows in minibatches:
                self._one_update(rows, batch, return_BT, sums)
        assert batch.value_BT is not None
        valued_BT = self._ppo.valued_BT(batch).bool()
        values = (
            sums.loss / len(minibatches),
            sums.clipped / max(1, int(valued_BT.sum())),
            sums.norm / len(minibatches),
            explained_variance(batch.value_BT[valued_BT], return_BT[valued_BT]),
            masked_mean(batch.value_BT, valued_BT),
            masked_mean(return_BT, valued_BT),
        )
        return dict(zip(METRICS, values, strict=True))

    def _one_update(self, rows: list[int], batch: TrainBatch, return_BT: Tensor, sums: _Sums) -> None:
        valued_BT = self._ppo.valued_BT(batch)
        totals = Totals.of(valued_BT[rows])
        if not totals.tokens:
            return  # nothing to learn from: not even weight decay
        self.optimizer.zero_grad(set_to_none=True)
        found = torch.zeros(2, dtype=torch.float64)  # loss and clipped tokens
        for part in self._context.microbatches(batch, [row for row in rows if valued_BT[row].any()]):
            micro = batch.rows(part)
            value_BT = self._context.apply_head(self._head, micro)
            device, width = value_BT.device, value_BT.shape[1]
            wanted_BT, mask_BT = return_BT[part, :width].to(device), valued_BT[part, :width].to(device)
            assert micro.value_BT is not None
            given = value_BT, micro.value_BT.to(device), wanted_BT
            terms_BT = value_terms(*given, clip_range=self._ppo.value_clip)
            loss = aggregate(terms_BT, mask_BT, "token-mean", totals)
            loss.backward()
            clipped_BT = value_clipped(*given, clip_range=self._ppo.value_clip) * mask_BT
            found += torch.tensor([float(loss.detach()), float(clipped_BT.sum())])
        self._context.all_reduce_sum([found])
        self._context.all_reduce_gradients(self.model.parameters())
        sums.loss += float(found[0])
        sums.clipped += float(found[1])
        sums.norm += float(nn.utils.clip_grad_norm_(self.model.parameters(), self._context.max_grad_norm))
        self.optimizer.step()


def explained_variance(value_N: Tensor, return_N: Tensor) -> float:
    """1 - Var(return - value) / Var(return): 1 when values are right up to a constant; 0 where all returns agree."""
    if return_N.numel() == 0 or return_N.max() == return_N.min():
        return 0.0
    return float(1.0 - (return_N - value_N).var(correction=0) / return_N.var(correction=0))
