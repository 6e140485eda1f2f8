"""The policy gradient: an advantage estimator, a surrogate loss, and optional KL and entropy terms.

    rewards [- KL] -> estimator -> adv_BT -> surrogate [+ KL] [- entropy] -> aggregation -> loss

Most methods are this class with other defaults. Options that the estimator and the surrogate do not use are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cepo.algo.advantages import (
    pass_at_k_advantage,
    reinforce_plus_plus_advantage,
    reinforce_plus_plus_baseline_advantage,
    rloo_advantage,
    terminal_reward,
)
from cepo.algo.base import OFF_POLICY_CAP, Advantages, Algorithm, LossOutput
from cepo.algo.batch import Student, TrainBatch
from cepo.algo.core import Scale, group_advantage
from cepo.algo.diagnostics import credit_metrics
from cepo.algo.importance import TWO_SIDED, Correction, importance_weights
from cepo.algo.kl import KlForm, apply_kl_penalty, kl_terms
from cepo.algo.losses import (
    Aggregation,
    Totals,
    aggregate,
    clipped_terms,
    dual_clip_fraction,
    entropy,
    importance_ratio,
    ratio_clip_fractions,
)
from cepo.algo.surrogates import cispo_terms, gspo_terms, gspo_token_terms, sapo_terms, sequence_ratio
from cepo.messages.groups import Ask, ContextName, TeachWhen, Weights

REFERENCE = Ask(context=ContextName.PLAIN, weights=Weights.REFERENCE)
Estimator = Literal["grpo", "rloo", "reinforce++", "reinforce++-baseline", "pass@k"]
Surrogate = Literal["clip", "gspo", "gspo-token", "cispo", "sapo"]

_READS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "grpo": frozenset({"advantage_scale", "advantage_eps", "std_correction"}),
        "pass@k": frozenset({"advantage_eps"}),
        "reinforce++": frozenset({"gamma"}),
        "gae": frozenset({"gamma"}),
        "clip": frozenset({"clip_low", "clip_high", "dual_clip"}),
        "gspo": frozenset({"clip_low", "clip_high", "dual_clip"}),
        "gspo-token": frozenset({"clip_low", "clip_high", "dual_clip"}),
        "cispo": frozenset({"ratio_min", "ratio_max"}),
        "sapo": frozenset({"tau_pos", "tau_neg"}),
    }
)
"""The options that each estimator and each surrogate uses."""
_PARTICULAR = frozenset().union(*_READS.values())


class PolicyGradient(Algorithm):
    """A policy gradient: an advantage for every token, and a surrogate loss that follows it.

    With the clipped surrogate of PPO (arXiv:1707.06347, Eq. 7), to be minimised:

        r_t    = pi(y_t) / pi_old(y_t)
        loss_t = max(-A_t r_t, -A_t clip(r_t, 1 - clip_low, 1 + clip_high))
    """

    estimator: Estimator = "grpo"
    """How rewards become advantages. grpo: (R - mean) / std within the group; rloo: R minus the mean of the group's
    other rewards; pass@k: only the group's best response has one; reinforce++: the return of each token, whitened over
    the batch; reinforce++-baseline: R minus the group's mean, whitened over the batch."""
    advantage_scale: Scale = "std"
    """grpo: the divisor of a centred reward. std: the deviation of its group; batch-std: the deviation of all rewards
    of the step; none: no divisor (Dr.GRPO)."""
    advantage_eps: float = Field(default=1e-6, ge=0)
    """grpo, pass@k: added to the standard deviation. 1e-6 as in EasyR1 and verl."""
    std_correction: Literal[0, 1] = 1
    """grpo: 1 for the unbiased standard deviation, as in EasyR1 and verl; 0 for the biased deviation."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """reinforce++, gae: the discount of rewards, per token. 1 as in EasyR1."""
    surrogate: Surrogate = "clip"
    """The loss of a token, given its advantage and its importance ratio. clip: PPO's clipped surrogate; gspo: the same
    with one ratio per response; gspo-token: gspo with a gradient per token; cispo: a clipped weight on the log-prob;
    sapo: a soft gate."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """clip, gspo: the ratio is clipped below 1 - clip_low. 0.2 as in PPO, DAPO and CEPO."""
    clip_high: float = Field(default=0.28, gt=0)
    """clip, gspo: the ratio is clipped above 1 + clip_high. 0.28 as in DAPO (clip-higher) and CEPO."""
    dual_clip: float | None = Field(default=None, gt=1)
    """clip, gspo: bounds the loss of a token with A < 0 at -A x dual_clip (arXiv:1912.09729). EasyR1 uses 3."""
    ratio_min: float = Field(default=0.0, ge=0)
    """cispo: lower bound of the importance weight itself. 0, as the paper has no effective lower bound."""
    ratio_max: float = Field(default=5.0, gt=0)
    """cispo: upper bound of the importance weight itself. 5 as in EasyR1's script."""
    tau_pos: float = Field(default=1.0, gt=0)
    """sapo: temperature of the gate for tokens with A > 0. 1.0 as in the paper."""
    tau_neg: float = Field(default=1.05, gt=0)
    """sapo: temperature of the gate for tokens with A < 0. 1.05 as in the paper."""
    aggregation: Aggregation = "token-mean"
    """How the losses of tokens become one number. token-mean: the mean over all tokens of the minibatch (DAPO);
    seq-mean-token-mean: the mean over responses of each response's mean (GRPO's paper); seq-mean-token-sum: the mean
    over responses of each response's sum; seq-mean-token-sum-norm: the sum divided by `sampling.max_tokens` (Dr.GRPO in
    verl); dr-grpo: the sum divided by responses x `sampling.max_tokens` (Dr.GRPO in TRL)."""
    mask_truncated: bool = False
    """Leaves responses cut at `sampling.max_tokens` out of the loss and its denominators (DAPO's overlong
    filtering)."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the base model. 0 as in CEPO, RLSD and DAPO: no divergence is computed."""
    kl_form: KlForm = "low_var_kl"
    """How the divergence is estimated from a sampled token, with d = log pi - log pi_ref. kl: d; abs: |d|; mse: d^2 /
    2; low_var_kl: e^-d + d - 1."""
    kl_aggregation: Aggregation | None = None
    """The aggregation of the divergence in the loss. Unset: that of the loss. VinePPO and SPO: seq-mean-token-sum."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether the divergence is added to the loss or subtracted from the reward of each token."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of an entropy bonus, per nat of the mean entropy of the token distributions. 0 turns it off."""
    old_logp: Literal["trainer", "rollout"] = "trainer"
    """Which log-probs are those of the policy at the start of the step: the trainer computes them again, or the rollout
    engine's are taken."""
    importance: Correction = "token_truncate"
    """How a loss is corrected for the rollout engine's log-probs, with r = pi_old / pi_rollout. token_truncate: min(r,
    cap) for each token (TIS); token_mask: r, or 0 above the cap (MIS); sequence_truncate, sequence_mask: the same with
    the product of the response's ratios; icepop: r, or 0 outside [floor, cap]; geometric_mask: 0 for responses whose
    geometric mean of r is outside [floor, cap], otherwise 1."""
    importance_cap: float | None = Field(default=None, ge=0)
    """Upper bound of the importance correction. 0 turns it off. Unset: 2 if `loop.lag` is above 0, otherwise off."""
    importance_floor: float = Field(default=0.0, ge=0)
    """icepop, geometric_mask: lower bound of the correction. IcePop has 0.5 and a cap of 5."""

    @model_validator(mode="after")
    def _no_idle_option(self) -> Self:
        reads = _READS.get(self.estimator, frozenset()) | _READS[self.surrogate]
        unread = sorted(_PARTICULAR - reads)
        self.refuse_idle(unread, f"with estimator={self.estimator!r}, surrogate={self.surrogate!r}")
        if self.advantage_scale == "none":
            self.refuse_idle(
                ("advantage_eps", "std_correction"), "with advantage_scale='none', which divides by nothing"
            )
        if self.kl_coef == 0:
            self.refuse_idle(("kl_form", "kl_aggregation", "kl_in"), "while kl_coef is 0")
        if self.kl_in == "reward":
            self.refuse_idle(("kl_aggregation",), 'with kl_in="reward", where each token has its own divergence')
        if self.importance not in TWO_SIDED:
            self.refuse_idle(("importance_floor",), f"with importance={self.importance!r}, which has no lower bound")
        if self.importance_cap is not None and 0 < self.importance_cap <= self.importance_floor:
            raise ValueError(
                f"importance_floor={self.importance_floor} must be below importance_cap={self.importance_cap}"
            )
        if self.old_logp == "rollout" and self.importance_cap:
            raise ValueError("importance_cap has no effect with old_logp='rollout': the weights are all 1")
        if self.surrogate == "gspo" and self.credits_tokens:
            raise ValueError(
                f"surrogate='gspo' spreads the credit of a token over its whole response, and {self.name} gives every "
                'token its own; write surrogate = "gspo-token"'
            )
        if self.ratio_min >= self.ratio_max:
            raise ValueError(f"ratio_min={self.ratio_min} must be below ratio_max={self.ratio_max}")
        return self

    @property
    def credits_tokens(self) -> bool:
        """Whether the advantages of a response's tokens differ."""
        return self.estimator in ("reinforce++", "gae")

    @property
    def asks(self) -> tuple[Ask, ...]:
        return (REFERENCE,) if self.kl_coef > 0 else ()

    @property
    def teach_when(self) -> TeachWhen:
        """A group of equal rewards has zero advantages, unless other groups or a divergence enter them."""
        spread_alone = self.kl_coef == 0 and not self.estimator.startswith("reinforce++")
        return TeachWhen.REWARD_SPREAD if spread_alone else TeachWhen.ALWAYS

    def for_lagging_rollouts(self) -> Self:
        unsaid = self.importance_cap is None and self.old_logp == "trainer"
        return self.model_copy(update={"importance_cap": OFF_POLICY_CAP}) if unsaid else self

    def loss_mask_BT(self, batch: TrainBatch) -> Tensor:
        """The mask of the tokens in the policy loss."""
        left_out_B = batch.demonstration_B | (batch.truncated_B if self.mask_truncated else torch.tensor(False))
        return batch.mask_BT * ~left_out_B[:, None]

    def base_advantages(self, batch: TrainBatch) -> Tensor:
        """adv_BT as the estimator returns it, before evidence weighs the tokens."""
        mask_BT, penalty_BT = self.loss_mask_BT(batch), self._penalty_BT(batch)
        reward_B, group_B = batch.reward_B + penalty_BT.sum(dim=1), batch.group_B
        match self.estimator:
            case "grpo":
                adv_B = group_advantage(
                    reward_B,
                    group_B,
                    eps=self.advantage_eps,
                    scale=self.advantage_scale,
                    correction=self.std_correction,
                )
            case "rloo":
                adv_B = rloo_advantage(reward_B, group_B)
            case "pass@k":
                adv_B = pass_at_k_advantage(reward_B, group_B, eps=self.advantage_eps)
            case "reinforce++":
                token_reward_BT = terminal_reward(batch.reward_B, mask_BT) + penalty_BT
                return reinforce_plus_plus_advantage(token_reward_BT, mask_BT, gamma=self.gamma)
            case "reinforce++-baseline":
                return reinforce_plus_plus_baseline_advantage(reward_B, group_B, mask_BT)
        return adv_B[:, None] * mask_BT

    def advantages(self, batch: TrainBatch, step: int) -> Advantages:
        return Advantages(self.base_advantages(batch), credit_metrics(None, batch, batch.mask_BT, 0.0))

    def has_gradient_B(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        everywhere = (self.kl_coef > 0 and self.kl_in == "loss") or self.entropy_coef > 0
        return self.loss_mask_BT(batch).any(dim=1) if everywhere else (adv_BT != 0).any(dim=1)

    def logp_old_BT(self, batch: TrainBatch) -> Tensor | None:
        return batch.rollout_logp_BT if self.old_logp == "rollout" else None

    def loss(
        self, student: Student, logp_old_BT: Tensor, batch: TrainBatch, adv_BT: Tensor, minibatch: TrainBatch
    ) -> LossOutput:
        logp_BT, mask_BT = student.logp_BT, self.loss_mask_BT(batch)
        loss_BT = self._terms(logp_BT, logp_old_BT, adv_BT, mask_BT)
        if self.importance_cap:
            pair, bounds = (logp_old_BT, batch.rollout_logp_BT), (self.importance_cap, self.importance_floor)
            loss_BT = loss_BT * importance_weights(*pair, batch.mask_BT, self.importance, *bounds)
        sums_BT = self._reports(logp_BT.detach(), logp_old_BT, adv_BT, mask_BT)
        divergence: Tensor | float = 0.0
        if self.kl_coef > 0 and self.kl_in == "loss":
            kl_BT = kl_terms(logp_BT, batch.evidence[REFERENCE].logp_BT, self.kl_form)
            if self.kl_aggregation in (None, self.aggregation):
                loss_BT = loss_BT + self.kl_coef * kl_BT
            else:
                divergence = self.kl_coef * self._reduced(kl_BT, batch, minibatch, self.kl_aggregation)
            sums_BT["kl/reference"] = kl_BT.detach()
        if self.entropy_coef > 0:
            entropy_BT = student.per_token(entropy)
            loss_BT = loss_BT - self.entropy_coef * entropy_BT
            sums_BT["entropy/mean"] = entropy_BT.detach()
        sum_of = [torch.where(mask_BT.bool(), value_BT, 0.0).sum() for value_BT in sums_BT.values()]
        sums = dict(zip(sums_BT, torch.stack(sum_of).tolist(), strict=True))  # a GPU is waited for once
        loss = self._reduced(loss_BT, batch, minibatch, self.aggregation) + divergence
        return LossOutput(loss, sums, loss_tokens=int(mask_BT.sum()))

    def _reduced(self, loss_BT: Tensor, batch: TrainBatch, minibatch: TrainBatch, aggregation: Aggregation) -> Tensor:
        """The token losses of a micro-batch as one number, with the denominators of its minibatch."""
        totals = Totals.of(self.loss_mask_BT(minibatch), minibatch.max_tokens)
        return aggregate(loss_BT, self.loss_mask_BT(batch), aggregation, totals)

    def _terms(self, logp_BT: Tensor, logp_old_BT: Tensor, adv_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The surrogate loss of every token, [B, T]."""
        low, high, dual = self.clip_low, self.clip_high, self.dual_clip
        match self.surrogate:
            case "clip":
                return clipped_terms(logp_BT, logp_old_BT, adv_BT, clip_low=low, clip_high=high, dual_clip=dual)
            case "gspo":
                return gspo_terms(logp_BT, logp_old_BT, adv_BT, mask_BT, clip_low=low, clip_high=high, dual_clip=dual)
            case "gspo-token":
                return gspo_token_terms(
                    logp_BT, logp_old_BT, adv_BT, mask_BT, clip_low=low, clip_high=high, dual_clip=dual
                )
            case "cispo":
                return cispo_terms(logp_BT, logp_old_BT, adv_BT, ratio_min=self.ratio_min, ratio_max=self.ratio_max)
            case "sapo":
                return sapo_terms(logp_BT, logp_old_BT, adv_BT, tau_pos=self.tau_pos, tau_neg=self.tau_neg)

    def _penalty_BT(self, batch: TrainBatch) -> Tensor:
        """The KL penalty added to each token's reward, [B, T]; 0 if the divergence is part of the loss."""
        zero_BT = torch.zeros_like(batch.mask_BT)
        if self.kl_coef == 0 or self.kl_in == "loss":
            return zero_BT
        logp_BT, reference_BT = batch.rollout_logp_BT, batch.evidence[REFERENCE].logp_BT
        return apply_kl_penalty(zero_BT, logp_BT, reference_BT, batch.mask_BT, coef=self.kl_coef, form=self.kl_form)

    def _reports(self, logp_BT: Tensor, logp_old_BT: Tensor, adv_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
        """The metrics of every token, [B, T], by key."""
        if self.surrogate.startswith("gspo"):
            ratio_BT = sequence_ratio(logp_BT, logp_old_BT, mask_BT)
        else:
            ratio_BT = importance_ratio(logp_BT, logp_old_BT)
        low_BT, high_BT = ratio_clip_fractions(ratio_BT, adv_BT, clip_low=self.clip_low, clip_high=self.clip_high)
        reports = {
            "clip/ppo_low": low_BT.float(),
            "clip/ppo_high": high_BT.float(),
            "kl/old_new": logp_old_BT - logp_BT,
            "entropy/sampled": -logp_BT,
        }
        if self.dual_clip is not None:
            reports["clip/dual"] = dual_clip_fraction(ratio_BT, adv_BT, dual_clip=self.dual_clip).float()
        return reports
