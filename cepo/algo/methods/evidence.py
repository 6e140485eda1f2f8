"""RLSD and CEPO: GRPO's advantage, weighed at every token by the ratio of two evidences.

They differ in which two evidences are divided, and in nothing else:

    RLSD  answer / plain       (arXiv:2604.03128, Eqs 13-15; arXiv:2605.19436, Eq. 4)
    CEPO  answer / rejected    (arXiv:2605.19436, Eqs 5 and 7)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cepo.algo.base import Advantages, Metrics
from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.algo.core import Credit, credit
from cepo.algo.diagnostics import credit_metrics
from cepo.algo.methods.policy_gradient import PolicyGradient
from cepo.algo.schedules import constant, linear_decay, warmup_decay
from cepo.algo.teacher import TeacherSource
from cepo.messages.groups import Ask, ContextName, Feedback, Pick

Positive = Literal["answer", "solution", "peer_answer", "peer_full", "peer_prefix", "peer_suffix"]
CUT = ("peer_prefix", "peer_suffix")


@dataclass(frozen=True)
class Weighing:
    """A step's advantages before and after the evidence weighed them."""

    adv_BT: Tensor
    """Before."""
    denominator: EvidenceTensors
    weighed_BT: Tensor
    """Tokens that have both evidences and may be weighed."""
    credit: Credit
    """The parts of the reweighting; `credit.adv_BT` is the advantage after it."""


class EvidenceRatio(PolicyGradient):
    """A_t = A [(1 - lam) + lam clip(exp(sign(A) (log P_num - log P_den)), 1 - eps_w, 1 + eps_w)]."""

    lam: float = Field(default=0.5, ge=0, le=1)
    """Share of the evidence: the most there is of it."""
    schedule: Literal["constant", "linear", "warmup_decay"] = "linear"
    decay_steps: int = Field(default=25, ge=1)
    """Steps in which the share falls linearly to 0."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which it rises before; warmup_decay only."""
    offset: Literal[0, 1] = 0
    """What the first step counts in the schedule: 0 in CEPO's code, 1 in RLSD's."""
    eps_w: float = Field(default=0.5, gt=0, lt=1)
    sign: Literal["token", "sequence"] = "token"
    """Whose advantage gives the direction of a weight; they differ only where it varies within a sequence."""
    teacher: TeacherSource = TeacherSource()
    positive: Positive = "answer"
    """What r+ shows; a correct peer's, where there is one, else the reference answer."""
    feedback_tokens: int | None = Field(default=None, ge=1)
    """Length of a peer's prefix or suffix."""
    pick: Literal["reward", "shortest", "most_common", "random"] = "reward"
    """Which peer is shown."""
    images: Literal["keep", "drop"] = "keep"
    """Whether the teacher sees the images; the reference code of CEPO drops them, with padding in their places. The
    policy's own evidence has them either way."""

    @model_validator(mode="after")
    def _meaningful(self) -> Self:
        if self.changed("warmup_steps") and self.schedule != "warmup_decay":
            raise ValueError(f'warmup_steps is for schedule = "warmup_decay", not "{self.schedule}"; leave it out')
        for key in filter(self.changed, ("decay_steps", "offset") if self.schedule == "constant" else ()):
            raise ValueError(f'{key} has no meaning with schedule = "constant"; leave it out')
        if self.cuts and self.feedback_tokens is None:
            raise ValueError("feedback_tokens is missing: a peer's prefix or suffix needs its length")
        if not self.cuts and self.feedback_tokens is not None:
            raise ValueError("feedback_tokens is the length of a peer's prefix or suffix; leave it out")
        if self.changed("pick") and not self.shows_peers:
            raise ValueError("pick chooses among peers and none is shown; leave it out")
        return self

    @property
    def credits_tokens(self) -> bool:
        return True

    @property
    def shown(self) -> tuple[str, ...]:
        """What the contexts show."""
        return (self.positive,)

    @property
    def cuts(self) -> bool:
        """Whether a part of a peer's response is shown."""
        return any(source in CUT for source in self.shown)

    @property
    def shows_peers(self) -> bool:
        return any(source.startswith("peer") for source in self.shown)

    @property
    def teacher_source(self) -> TeacherSource:
        return self.teacher

    def lam_at(self, step: int) -> float:
        """Share of the evidence at a step, which counts from 0."""
        at = step + self.offset
        match self.schedule:
            case "constant":
                return constant(self.lam, at)
            case "linear":
                return linear_decay(self.lam, self.decay_steps, at)
        return warmup_decay(self.lam, self.warmup_steps, self.decay_steps, at)

    @property
    @abstractmethod
    def contrast(self) -> tuple[Ask, ...]:
        """The evidence that is divided: of the numerator, then of the denominator."""

    @property
    def asks(self) -> tuple[Ask, ...]:
        return (*super().asks, *self.contrast)

    def asks_at(self, step: int) -> tuple[Ask, ...]:
        return self.asks if self.lam_at(step) > 0 else super().asks

    def advantages(self, batch: TrainBatch, step: int) -> Advantages:
        adv_BT = self.base_advantages(batch)
        weighing = self._weighing(batch, adv_BT, step)
        credited_BT = adv_BT if weighing is None else weighing.credit.adv_BT
        return Advantages(credited_BT, self._metrics(batch, step, weighing))

    def _numerator(self, *, exclude_self: bool = True) -> Ask:
        """r+; without a correct peer to show, the reference answer."""
        if not self.positive.startswith("peer"):
            feedback = Feedback[self.positive.upper()]
            return Ask(context=ContextName.ANSWER, feedback=feedback, without_images=self.images == "drop")
        instead = ContextName.ANSWER
        return self._peer(ContextName.ANSWER, self.positive, exclude_self=exclude_self, otherwise=instead)

    def _peer(self, context: ContextName, source: str, **fields: Any) -> Ask:
        own_answer = context is ContextName.REJECTED and source == "peer_answer"
        feedback = Feedback.ANSWER if own_answer else Feedback[source.upper()]
        tokens = self.feedback_tokens if source in CUT else None
        return Ask(
            context=context,
            feedback=feedback,
            tokens=tokens or 0,
            pick=Pick[self.pick.upper()],
            without_images=self.images == "drop",
            **fields,
        )

    def _evidence(self, batch: TrainBatch) -> list[EvidenceTensors] | None:
        """What each ask found; None where the step measured nothing."""
        if any(ask not in batch.evidence for ask in self.contrast):
            return None
        return [batch.evidence[ask] for ask in self.contrast]

    def _ratio(self, evidence: Sequence[EvidenceTensors]) -> tuple[EvidenceTensors, EvidenceTensors]:
        """Numerator and denominator."""
        return evidence[0], mean_of(evidence[1:])

    def _weighing(self, batch: TrainBatch, adv_BT: Tensor, step: int) -> Weighing | None:
        """The weighing of a step; None where the step measured nothing."""
        evidence = self._evidence(batch)
        return None if evidence is None else self._weigh(batch, adv_BT, step, *self._ratio(evidence))

    def _weigh(
        self, batch: TrainBatch, adv_BT: Tensor, step: int, numerator: EvidenceTensors, denominator: EvidenceTensors
    ) -> Weighing:
        has_both_B = numerator.applicable_B & denominator.applicable_B
        weighed_BT = has_both_B[:, None] & self._may_weigh_BT(batch, adv_BT)
        sign_BT = torch.sign((adv_BT * batch.mask_BT).sum(dim=1, keepdim=True)) if self.sign == "sequence" else None
        evidence = numerator.logp_BT, denominator.logp_BT
        parts = credit(adv_BT, *evidence, self.lam_at(step), self.eps_w, weighed_BT, sign_BT)
        return Weighing(adv_BT, denominator, weighed_BT, parts)

    def _may_weigh_BT(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        """Tokens that the options leave to the evidence."""
        return batch.mask_BT.bool()

    def _metrics(self, batch: TrainBatch, step: int, weighing: Weighing | None) -> Metrics:
        if weighing is None:
            return credit_metrics(None, batch, batch.mask_BT, self.lam_at(step))
        moved_BT = weighing.weighed_BT & (weighing.credit.adv_BT != 0)
        return credit_metrics(weighing.credit, batch, moved_BT, self.lam_at(step))


def mean_of(found: Sequence[EvidenceTensors]) -> EvidenceTensors:
    """The mean of the log-probs of those that apply to a sequence."""
    applicable_KB = torch.stack([one.applicable_B for one in found])
    logp_KBT = torch.stack([one.logp_BT for one in found])
    sum_BT = torch.where(applicable_KB[:, :, None], logp_KBT, 0.0).sum(dim=0)
    return EvidenceTensors(sum_BT / applicable_KB.sum(dim=0).clamp(min=1)[:, None], applicable_KB.any(dim=0))


def in_groups_with(flag_B: Tensor, group_B: Tensor) -> Tensor:
    """Sequences of the groups in which some sequence has the flag."""
    return torch.isin(group_B, group_B[flag_B])
