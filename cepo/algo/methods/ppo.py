"""PPO (arXiv:1707.06347) with a critic: an adapter on the frozen base and a linear head that values every token.

The value of a token is read from the hidden state that predicts it, before the critic's update. Advantages and returns
follow verl's recursion (`cepo.algo.advantages.gae`), and the value loss is clipped (`cepo.algo.value`).

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


class Ppo(PolicyGradient):
    """PPO (arXiv:1707.06347, Eq. 7) with generalised advantage estimation (arXiv:1506.02438, Eq. 16) and a critic.

        R_t     = [t is the last token] R - kl_coef KL_t
        delta_t = R_t + gamma V_{t+1} - V_t
        A_t     = delta_t + gamma gae_lambda A_{t+1}, then whitened over the tokens of the batch

    followed by the clipped surrogate. The critic V minimises the clipped squared error to the return A_t + V_t.
    """

    name: Literal["ppo"] = "ppo"
    estimator: Literal["gae"] = "gae"  # type: ignore[assignment]  # the only estimator that needs a critic
    """How rewards become advantages: generalised advantage estimation with the critic's values."""
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped above 1 + clip_high. 0.2 as in the paper."""
    kl_coef: float = Field(default=1e-3, ge=0)
    """Weight of the KL divergence from the base model. 1e-3 as in EasyR1 and verl."""
    kl_form: KlForm = "kl"
    """How the divergence is estimated from a sampled token. kl: the log-ratio; the others as in GRPO."""
    kl_in: Literal["loss", "reward"] = "reward"
    """Whether the divergence is added to the loss or subtracted from the reward of each token."""
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    """Decay of later value errors in an advantage, per token. 1 as in EasyR1 and verl: the return minus the value."""
    critic_lr: float = Field(default=1e-5, gt=0)
    """Learning rate of the critic. 1e-5 as in verl."""
    critic_warmup: int = Field(default=0, ge=0)
    """Number of steps at the start in which only the critic learns."""
    value_clip: float = Field(default=0.5, gt=0)
    """Largest change of a token's value in a step that the value loss rewards, in units of reward. 0.5 as in EasyR1 and
    verl."""

    def learns_at(self, step: int) -> bool:
        return step >= self.critic_warmup

    def auxiliary_model(self, context: AuxiliaryContext) -> Critic:
        return Critic(self, context)

    def valued_BT(self, batch: TrainBatch) -> Tensor:
        """The mask of the tokens that have a return."""
        return self.loss_mask_BT(batch) * batch.reward_B.isfinite()[:, None]

    def base_advantages(self, batch: TrainBatch) -> Tensor:
        return self.advantages_and_returns(batch)[0]

    def advantages_and_returns(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """adv_BT, whitened, and return_BT; both are 0 for tokens without a return. The batch has the critic's
        values."""
        assert batch.value_BT is not None, "the critic prepares a batch first"
        valued_BT = self.valued_BT(batch)
        token_reward_BT = terminal_reward(batch.reward_B, valued_BT) + self._penalty_BT(batch)
        return gae(token_reward_BT, batch.value_BT, valued_BT, gamma=self.gamma, lam=self.gae_lambda)


class ValueHead(nn.Linear):
    """A linear head, [N, D] -> [N] in float32, with zero weights at the start."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        return super().forward(hidden_ND.float()).squeeze(1)


@dataclass(frozen=True)
class ValueUpdate:
    """The numbers of one optimiser update of the critic."""

    loss: float = 0.0
    clipped_tokens: float = 0.0
    """The number of tokens whose clipped error is the larger one, so that they have no gradient."""
    grad_norm: float = 0.0


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
        """Returns the batch with the value of every token."""
        with self._context.using_adapter(ADAPTER):
            value_BT = over_microbatches(
                self._context, batch, lambda micro: self._context.apply_head(self._head, micro)
            )
        return replace(batch, value_BT=value_BT)

    def update(self, batch: TrainBatch, step: int) -> Metrics:
        """Minimises the value loss, in the minibatches of the policy.

        Returns:
            Metrics; explained variance and means are those of the values before the update, over the tokens that the
            critic learns from.
        """
        _, return_BT = self._ppo.advantages_and_returns(batch)
        minibatches = self._context.minibatches(batch)
        with self._context.using_adapter(ADAPTER):
            updates = [self._one_update(rows, batch, return_BT) for rows in minibatches]
        assert batch.value_BT is not None
        valued_BT = self._ppo.valued_BT(batch).bool()
        return {
            "critic/loss": sum(update.loss for update in updates) / len(updates),
            "critic/clip_fraction": sum(update.clipped_tokens for update in updates) / max(1, int(valued_BT.sum())),
            "critic/grad_norm": sum(update.grad_norm for update in updates) / len(updates),
            "critic/explained_variance": explained_variance(batch.value_BT[valued_BT], return_BT[valued_BT]),
            "critic/value_mean": masked_mean(batch.value_BT, valued_BT),
            "critic/return_mean": masked_mean(return_BT, valued_BT),
        }

    def _one_update(self, rows: list[int], batch: TrainBatch, return_BT: Tensor) -> ValueUpdate:
        valued_BT = self._ppo.valued_BT(batch)
        totals = Totals.of(valued_BT[rows])
        if not totals.tokens:
            return ValueUpdate()  # no optimiser step, so that weight decay does not act either
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum, clipped_sum = torch.zeros(2, dtype=torch.float64).unbind()
        for part in self._context.microbatches(batch, [row for row in rows if valued_BT[row].any()]):
            micro = batch.rows(part)
            value_BT = self._context.apply_head(self._head, micro)
            device, width = value_BT.device, value_BT.shape[1]
            assert micro.value_BT is not None
            errors = value_BT, micro.value_BT.to(device), return_BT[part, :width].to(device)
            mask_BT = valued_BT[part, :width].to(device)
            terms_BT = value_terms(*errors, clip_range=self._ppo.value_clip)
            loss = aggregate(terms_BT, mask_BT, "token-mean", totals)
            loss.backward()
            loss_sum += loss.detach().cpu()
            clipped_sum += (value_clipped(*errors, clip_range=self._ppo.value_clip) * mask_BT).sum().cpu()
        self._context.all_reduce_sum([loss_sum, clipped_sum])
        self._context.all_reduce_gradients(self.model.parameters())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._context.max_grad_norm)
        self.take_step()
        return ValueUpdate(float(loss_sum), float(clipped_sum), float(norm))


def explained_variance(value_N: Tensor, return_N: Tensor) -> float:
    """1 - Var(return - value) / Var(return): 1 if the values are right up to a constant, 0 if all returns are equal."""
    if return_N.numel() == 0 or return_N.max() == return_N.min():
        return 0.0
    return float(1.0 - (return_N - value_N).var(correction=0) / return_N.var(correction=0))
