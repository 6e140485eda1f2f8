"""CLIPO: a contrastive head rewards correct responses for looking alike (github.com/Qwen-Applications/CLIPO).

The teacher measures the mean last hidden state of every response under the policy that sampled it. A projection head
turns it into a unit vector. A contrastive loss draws correct responses together and wrong ones away; it trains the head
and, with the head's weights before that update, changes the reward of correct responses.

Defaults are those of the released code, except for the exact logarithms and the exact mean.

Shapes: B sequences, U of them usable, H hidden size, D projection size.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import normalize

from cepo.algo.auxiliary import AuxiliaryContext, TrainedAuxiliaryModel
from cepo.algo.base import Metrics
from cepo.algo.batch import TrainBatch
from cepo.algo.contrastive import (
    RELEASED_FLOOR,
    Anchors,
    Contrast,
    ContrastiveLoss,
    Level,
    ProjectionHead,
    Similarity,
    contrastive_bonus,
    contrastive_loss,
    draw_positives,
)
from cepo.algo.core import masked_mean
from cepo.algo.methods.policy_gradient import PolicyGradient
from cepo.messages.groups import Ask, ContextName, TeachWhen, Want, Weights

POOLED = Ask(context=ContextName.PLAIN, want=Want.HIDDEN, weights=Weights.POLICY)


class Clipo(PolicyGradient):
    """CLIPO (github.com/Qwen-Applications/CLIPO): GRPO on rewards with a contrastive bonus for correct responses.

        z_i     = W h_i / |W h_i|, with h_i the mean last hidden state of response i
        s_ij    = z_i . z_j / temperature
        loss_i  = log(sum over j of exp(s_ij)) - s_ip, with j the other responses and p a correct one of them
        reward += max(bonus_constant - bonus_weight loss_i, bonus_minimum) for a correct response i

    The released code samples p; other losses are options. Its recipe has 16 responses per prompt.
    """

    name: Literal["clipo"] = "clipo"
    kl_coef: float = Field(default=1e-3, ge=0)
    """Weight of the KL divergence from the base model. 1e-3 as in the released code."""
    contrast: Contrast = "infonce"
    """The contrastive loss of a response. infonce: against one other correct response, drawn at random; supcon_out: the
    mean over all of them; supcon_in, soft_nn: the log of their mean or of their sum inside the logarithm."""
    level: Level = "group"
    """Which responses are compared. group: those of the prompt; cross: correct ones of the prompt with all others of
    the step; batch: all of the step."""
    similarity: Similarity = "cosine"
    """How two unit vectors are compared: cosine, negative_cosine, or l2 (1 minus their distance)."""
    temperature: float = Field(default=0.05, gt=0)
    """Divisor of the similarities. 0.05 as in the released code."""
    logarithms: Literal["exact", "released"] = "exact"
    """released adds 1e-8 inside each logarithm, as the released code does, which bounds the loss of distant
    responses."""
    bonus_weight: float = Field(default=0.2, gt=0)
    """Factor of the contrastive loss in the reward. 0.2 as in the released code."""
    bonus_constant: float = Field(default=0.0, allow_inf_nan=False)
    """Added to the reward of correct responses before the loss is subtracted. 0 as in the released code, where the
    bonus is never positive."""
    bonus_minimum: float = Field(default=-0.5, le=0)
    """Lower bound of the bonus, in units of reward. -0.5 as in the released code."""
    head: Literal["linear", "mlp"] = "linear"
    """The projection head: one linear layer, or two with a ReLU between them."""
    head_size: int = Field(default=512, ge=1)
    """Number of outputs of the head. 512 as in the released GSM8K script; its MATH script has 2048."""
    head_bias: bool = False
    """Whether the head's layers have biases."""
    head_lr: float = Field(default=1e-3, gt=0)
    """Learning rate of the head. 1e-3 as in the released code."""
    head_warmup: int = Field(default=0, ge=0)
    """Number of steps at the start in which only the head learns. The released scripts have 14 (GSM8K) and 58
    (MATH)."""
    fixed_head: bool = False
    """Keeps the head at its random initial weights."""

    @model_validator(mode="after")
    def _a_fixed_head_learns_nothing(self) -> Self:
        if self.fixed_head:
            self.refuse_idle(("head_lr", "head_warmup"), "with fixed_head=true")
        return self

    @property
    def asks(self) -> tuple[Ask, ...]:
        return (*super().asks, POOLED)

    @property
    def teach_when(self) -> TeachWhen:
        """At level "group", a group of only correct or only wrong responses gives no contrastive pairs."""
        return super().teach_when if self.level == "group" else TeachWhen.ALWAYS

    def learns_at(self, step: int) -> bool:
        return step >= self.head_warmup

    def auxiliary_model(self, context: AuxiliaryContext) -> ContrastiveHead:
        return ContrastiveHead(self, context)


@dataclass(frozen=True)
class Embeddings:
    """The U usable sequences of a batch and their projections; a usable one has a token, a verdict and a hidden
    state."""

    row_U: Tensor
    """The sequence's row in the batch."""
    hidden_UH: Tensor
    embedding_UD: Tensor
    """Unit vectors: the head's outputs, with gradient."""
    correct_U: Tensor
    group_U: Tensor
    positive_U: Tensor
    """The index among the U of the correct response that was drawn for each."""


class ContrastiveHead(TrainedAuxiliaryModel):
    """The projection head of a run."""

    def __init__(self, clipo: Clipo, context: AuxiliaryContext) -> None:
        head = ProjectionHead(context.hidden_size, clipo.head_size, kind=clipo.head, bias=clipo.head_bias)
        super().__init__(head, clipo.head_lr)
        self._clipo = clipo
        self._seed = context.seed

    @torch.no_grad()
    def prepare(self, batch: TrainBatch, step: int) -> TrainBatch:
        """Returns the batch with the bonus added to its rewards."""
        if (embeddings := self._embeddings(batch, step)) is None:
            return batch
        bonus_U = self._bonus(embeddings, self._loss(embeddings))
        return replace(batch, reward_B=batch.reward_B.index_add(0, embeddings.row_U, bonus_U))

    def update(self, batch: TrainBatch, step: int) -> Metrics:
        """Makes one optimiser step; none, so that the momentum does not move it, without responses to compare."""
        if (embeddings := self._embeddings(batch, step)) is None:
            return dict.fromkeys(METRICS, 0.0)
        contrast = self._loss(embeddings)
        if contrast.anchor_B.any() and not self._clipo.fixed_head:
            self.optimizer.zero_grad(set_to_none=True)
            contrast.loss.backward()
            self.take_step()
        return self._metrics(embeddings, contrast)

    def _embeddings(self, batch: TrainBatch, step: int) -> Embeddings | None:
        """The projections of the usable sequences; None if the step has no hidden states."""
        if POOLED not in batch.evidence or (pooled_BH := batch.evidence[POOLED].pooled_BD) is None:
            return None
        usable_B = batch.evidence[POOLED].applicable_B & batch.mask_BT.any(dim=1) & batch.reward_B.isfinite()
        row_U = (usable_B & ~batch.demonstration_B).nonzero().flatten()
        hidden_UH, group_U = pooled_BH[row_U], batch.group_B[row_U]
        correct_U = batch.correct_B[row_U].float()
        generator = torch.Generator().manual_seed(random.Random(f"{self._seed}/{step}").getrandbits(32))
        positive_U = draw_positives(correct_U, group_U, level=self._clipo.level, generator=generator)
        return Embeddings(row_U, hidden_UH, self.model(hidden_UH), correct_U, group_U, positive_U)

    def _loss(self, embeddings: Embeddings, anchors: Anchors = "correct") -> ContrastiveLoss:
        clipo = self._clipo
        return contrastive_loss(
            embeddings.embedding_UD,
            embeddings.correct_U,
            embeddings.group_U,
            contrast=clipo.contrast,
            level=clipo.level,
            similarity=clipo.similarity,
            temperature=clipo.temperature,
            anchors=anchors,
            floor=RELEASED_FLOOR if clipo.logarithms == "released" else 0.0,
            positive_B=embeddings.positive_U,
        )

    def _bonus(self, embeddings: Embeddings, contrast: ContrastiveLoss) -> Tensor:
        """The bonus of each usable sequence, [U]; 0 for wrong responses if the constant is 0."""
        clipo = self._clipo
        return contrastive_bonus(
            contrast.loss_B,
            embeddings.correct_U,
            weight=clipo.bonus_weight,
            constant=clipo.bonus_constant,
            minimum=clipo.bonus_minimum,
        )

    @torch.no_grad()
    def _metrics(self, embeddings: Embeddings, contrast: ContrastiveLoss) -> Metrics:
        correct_U, group_U = embeddings.correct_U.bool(), embeddings.group_U
        bonus_N = self._bonus(embeddings, contrast)[correct_U]
        everywhere_N = torch.ones_like(bonus_N)
        every = self._loss(embeddings, "all")
        return {
            "clipo/head_loss": float(contrast.loss),
            "clipo/anchor_fraction": masked_mean(contrast.anchor_B[correct_U], everywhere_N),
            **_moments("clipo/loss_correct", every.loss_B[every.anchor_B & correct_U]),
            **_moments("clipo/loss_wrong", every.loss_B[every.anchor_B & ~correct_U]),
            **_moments("clipo/bonus", bonus_N),
            "clipo/bonus_at_minimum_fraction": masked_mean(bonus_N == self._clipo.bonus_minimum, everywhere_N),
            **_pair_similarities("clipo/similarity_embedding", embeddings.embedding_UD, correct_U, group_U),
            **_pair_similarities("clipo/similarity_hidden", embeddings.hidden_UH, correct_U, group_U),
        }


_CORRECT_OF_PAIR = {"correct_correct": 2, "correct_wrong": 1, "wrong_wrong": 0}
"""The number of correct responses in each kind of pair."""
METRICS = (
    "clipo/head_loss",
    "clipo/anchor_fraction",
    *(f"clipo/loss_{label}_{moment}" for label in ("correct", "wrong") for moment in ("mean", "std")),
    "clipo/bonus_mean",
    "clipo/bonus_std",
    "clipo/bonus_at_minimum_fraction",
    *(f"clipo/similarity_{what}_{pair}" for what in ("embedding", "hidden") for pair in _CORRECT_OF_PAIR),
)
"""The metrics of the head before its update. Anchors and bonuses are counted over correct responses, similarities are
mean cosines over the pairs of a group. The loss of a wrong response is the loss it would have as an anchor."""


def _moments(key: str, value_N: Tensor) -> Metrics:
    """KEY_mean and KEY_std (biased); 0 without values."""
    if not len(value_N):
        return {f"{key}_mean": 0.0, f"{key}_std": 0.0}
    return {f"{key}_mean": float(value_N.mean()), f"{key}_std": float(value_N.std(correction=0))}


def _pair_similarities(key: str, vector_UD: Tensor, correct_U: Tensor, group_U: Tensor) -> Metrics:
    """The mean cosine of the pairs of a group, by the number of correct responses in a pair."""
    unit_UD = normalize(vector_UD.float(), dim=1)
    pair_UU = (group_U[:, None] == group_U).triu(diagonal=1)
    correct_UU = correct_U[:, None].long() + correct_U.long()
    similarity_UU = unit_UD @ unit_UD.T
    return {
        f"{key}_{pair}": masked_mean(similarity_UU, pair_UU & (correct_UU == count))
        for pair, count in _CORRECT_OF_PAIR.items()
    }
