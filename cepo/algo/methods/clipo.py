"""CLIPO: rewards of correct responses that look like one another, as a head learns to see it.

The teacher measures the mean last hidden state of every response under the policy that sampled it. A projection head
turns it into a unit vector, a contrastive loss draws correct responses together and wrong ones away, and
max(constant - weight loss, minimum) is added to the reward of a correct response, with the head from before its update.

Defaults are those of the released code (github.com/Qwen-Applications/CLIPO), but for the exact logarithms and mean.

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
    """GRPO on rewards with a contrastive bonus."""

    name: Literal["clipo"] = "clipo"
    kl_coef: float = Field(default=1e-3, ge=0)
    contrast: Contrast = "infonce"
    level: Level = "group"
    similarity: Similarity = "cosine"
    temperature: float = Field(default=0.05, gt=0)
    """Of the contrastive loss."""
    logarithms: Literal["exact", "released"] = "exact"
    """released: 1e-8 inside each logarithm, which bounds the loss of far responses."""
    bonus_weight: float = Field(default=0.2, gt=0)
    bonus_constant: float = Field(default=0.0, allow_inf_nan=False)
    bonus_minimum: float = Field(default=-0.5, le=0)
    head: Literal["linear", "mlp"] = "linear"
    head_size: int = Field(default=512, ge=1)
    head_bias: bool = False
    head_lr: float = Field(default=1e-3, gt=0)
    head_warmup: int = Field(default=0, ge=0)
    """Steps at the start in which the head learns alone."""
    fixed_head: bool = False
    """The head stays as it was drawn."""

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
        """Within its own group a response of a group all correct or all wrong has nothing to be told from."""
        return super().teach_when if self.level == "group" else TeachWhen.ALWAYS

    def learns_at(self, step: int) -> bool:
        return step >= self.head_warmup

    def auxiliary_model(self, context: AuxiliaryContext) -> ContrastiveHead:
        return ContrastiveHead(self, context)


@dataclass(frozen=True)
class Embeddings:
    """What the head makes of the U sequences that can be compared."""

    row_U: Tensor
    hidden_UH: Tensor
    embedding_UD: Tensor
    correct_U: Tensor
    group_U: Tensor
    positive_U: Tensor
    """The positive that was drawn for each."""


class ContrastiveHead(TrainedAuxiliaryModel):
    """The projection head of a run."""

    def __init__(self, clipo: Clipo, context: AuxiliaryContext) -> None:
        head = ProjectionHead(context.hidden_size, clipo.head_size, kind=clipo.head, bias=clipo.head_bias)
        super().__init__(head, clipo.head_lr)
        self._clipo = clipo
        self._seed = context.seed

    @torch.no_grad()
    def prepare(self, batch: TrainBatch, step: int) -> TrainBatch:
        """The batch with the bonus in its rewards."""
        if (embeddings := self._embeddings(batch, step)) is None:
            return batch
        bonus_U = self._bonus(embeddings, self._loss(embeddings))
        return replace(batch, reward_B=batch.reward_B.index_add(0, embeddings.row_U, bonus_U))

    def update(self, batch: TrainBatch, step: int) -> Metrics:
        """One step of the head; none, not even of its momentum, without a response to compare."""
        if (embeddings := self._embeddings(batch, step)) is None:
            return dict.fromkeys(METRICS, 0.0)
        found = self._loss(embeddings)
        if found.anchor_B.any() and not self._clipo.fixed_head:
            self.optimizer.zero_grad(set_to_none=True)
            found.loss.backward()
            self.optimizer.step()
        return self._metrics(embeddings, found)

    def _embeddings(self, batch: TrainBatch, step: int) -> Embeddings | None:
        """Everything measured that has a token and a verdict; None where the step measured nothing."""
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

    def _bonus(self, embeddings: Embeddings, found: ContrastiveLoss) -> Tensor:
        clipo = self._clipo
        return contrastive_bonus(
            found.loss_B,
            embeddings.correct_U,
            weight=clipo.bonus_weight,
            constant=clipo.bonus_constant,
            minimum=clipo.bonus_minimum,
        )

    @torch.no_grad()
    def _metrics(self, embeddings: Embeddings, found: ContrastiveLoss) -> Metrics:
        bonus_U, correct_U = self._bonus(embeddings, found), embeddings.correct_U.bool()
        every = self._loss(embeddings, "all")
        given_U = bonus_U[correct_U]
        values = [
            float(found.loss),
            masked_mean(found.anchor_B[correct_U], torch.ones_like(given_U)),
            *_moments(every.loss_B[every.anchor_B & correct_U]),
            *_moments(every.loss_B[every.anchor_B & ~correct_U]),
            *_moments(given_U),
            masked_mean(given_U == self._clipo.bonus_minimum, torch.ones_like(given_U)),
            *_pair_similarities(embeddings.embedding_UD, correct_U, embeddings.group_U),
            *_pair_similarities(embeddings.hidden_UH, correct_U, embeddings.group_U),
        ]
        return dict(zip(METRICS, values, strict=True))


_PAIRS = ("correct_correct", "correct_wrong", "wrong_wrong")
METRICS = (
    "clipo/head_loss",
    "clipo/anchor_fraction",
    *(f"clipo/loss_{label}_{moment}" for label in ("correct", "wrong") for moment in ("mean", "std")),
    "clipo/bonus_mean",
    "clipo/bonus_std",
    "clipo/bonus_at_minimum_fraction",
    *(f"clipo/similarity_{what}_{pair}" for what in ("embedding", "hidden") for pair in _PAIRS),
)
"""Of the head before its update. Anchors, bonuses: over correct responses. Similarities: mean cosine of the pairs of a
group. The losses of wrong responses are what they would be, were they anchors too."""


def _moments(value_N: Tensor) -> tuple[float, float]:
    """Mean and biased deviation; 0 without any."""
    return (float(value_N.mean()), float(value_N.std(correction=0))) if len(value_N) else (0.0, 0.0)


def _pair_similarities(vector_UD: Tensor, correct_U: Tensor, group_U: Tensor) -> list[float]:
    unit_UD = normalize(vector_UD.float(), dim=1)
    near_UU = (group_U[:, None] == group_U).triu(diagonal=1)
    of_pair_UU = correct_U[:, None].long() + correct_U.long()  # how many of the two are correct
    return [masked_mean(unit_UD @ unit_UD.T, near_UU & (of_pair_UU == count)) for count in (2, 1, 0)]
