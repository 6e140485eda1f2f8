"""RLSD and CEPO: GRPO's advantage, multiplied at every token by a weight from the ratio of two evidences.

An evidence is the probability of the sampled token under a context of the teacher. The methods differ only in which two
evidences they divide:

    RLSD  with the right answer / without a hint           (arXiv:2604.03128, Eqs 13 to 15; arXiv:2605.19436, Eq. 4)
    CEPO  with the right answer / with a wrong answer      (arXiv:2605.19436, Eqs 5 and 7)
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
from cepo.messages.vocabulary import DEAD_BAND

Positive = Literal["answer", "solution", "peer_answer", "peer_full", "peer_prefix", "peer_suffix"]
CUT = ("peer_prefix", "peer_suffix")


@dataclass(frozen=True)
class Weighing:
    """The advantages of a step before and after they were multiplied by the evidence's weights."""

    adv_BT: Tensor
    """The advantages before."""
    numerator: EvidenceTensors
    """The evidence that was divided."""
    denominator: EvidenceTensors
    """The evidence that was divided by."""
    weighed_BT: Tensor
    """Whether a token has both evidences and the options let its weight differ from 1."""
    credit: Credit
    """The parts of the reweighting; `credit.adv_BT` holds the advantages after it."""


class EvidenceRatio(PolicyGradient):
    """An evidence ratio: the group advantage, weighed at every token by the ratio of two evidences.

    With A the advantage of GRPO and P_num, P_den the token's probability under the two contexts:

        delta_t = log P_num(y_t) - log P_den(y_t)
        w_t     = exp(sign(A) delta_t)
        A_t     = A [(1 - lam) + lam clip(w_t, 1 - eps_w, 1 + eps_w)]

    The evidences carry no gradient, and A_t always has the sign of A.
    """

    lam: float = Field(default=0.5, ge=0, le=1)
    """Share of the evidence in the credit, at the top of its schedule. 0 is GRPO. 0.5 as in the papers of CEPO (Table
    6) and RLSD."""
    schedule: Literal["constant", "linear", "warmup_decay"] = "linear"
    """How the share changes over the steps. constant: never; linear: falls from `lam` to 0; warmup_decay: rises from 0
    to `lam`, then falls."""
    decay_steps: int = Field(default=25, ge=1)
    """Number of steps in which the share falls linearly to 0. 25 as in CEPO's paper."""
    warmup_steps: int = Field(default=0, ge=0)
    """warmup_decay: number of steps in which the share rises linearly before it falls."""
    offset: Literal[0, 1] = 0
    """The number of the first step in the schedule: 0 as in CEPO's code, 1 as in RLSD's code."""
    eps_w: float = Field(default=0.5, gt=0, lt=1)
    """Width of the clip of a weight: it stays within [1 - eps_w, 1 + eps_w]. 0.5 as in CEPO's paper (Tables 6 and
    7)."""
    sign: Literal["token", "sequence"] = "token"
    """Which advantage's sign a weight follows: the token's own, or that of the sum over the response. They differ only
    if advantages vary within a response. token as in RLSD's code, sequence as in CEPO's."""
    teacher: TeacherSource = TeacherSource()
    """The weights that measure the evidence; see teacher sources. actor as in CEPO's paper."""
    positive: Positive = "answer"
    """What the hint r+ shows. answer, solution: the reference answer or the worked solution; peer_answer, peer_full,
    peer_prefix, peer_suffix: the answer, the whole response, or its first or last `feedback_tokens` tokens, of a
    correct response of the group, and the reference answer if the group has none (arXiv:2605.19436, Table 5)."""
    feedback_tokens: int | None = Field(default=None, ge=1)
    """Number of tokens that peer_prefix and peer_suffix show."""
    pick: Literal["reward", "shortest", "most_common", "random"] = "reward"
    """Which response of the group a hint shows: the one of the highest reward (of the lowest for r-), the shortest, one
    with the most common answer, or a random one."""
    images: Literal["keep", "drop"] = "keep"
    """Whether the teacher gets the images of the prompt. drop puts padding in their place, as CEPO's code does.
    Evidence under the plain prompt always keeps the images."""
    dead_band: float = Field(default=DEAD_BAND, ge=0)
    """Nats. The metrics count a delta as positive, negative or in the wrong direction only beyond this band; most
    smaller ones are rounding. The advantages do not depend on it."""

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
        """The options that say what the hints show."""
        return (self.positive,)

    @property
    def cuts(self) -> bool:
        """Whether a hint shows a part of a response of the group."""
        return any(source in CUT for source in self.shown)

    @property
    def shows_peers(self) -> bool:
        """Whether a hint shows a response of the group."""
        return any(source.startswith("peer") for source in self.shown)

    @property
    def teacher_source(self) -> TeacherSource:
        return self.teacher

    def lam_at(self, step: int) -> float:
        """The share of the evidence at a training step, counted from 0."""
        position = step + self.offset
        match self.schedule:
            case "constant":
                return constant(self.lam, position)
            case "linear":
                return linear_decay(self.lam, self.decay_steps, position)
        return warmup_decay(self.lam, self.warmup_steps, self.decay_steps, position)

    @property
    @abstractmethod
    def contrast(self) -> tuple[Ask, ...]:
        """The asks of the numerator and of the denominator, in this order; several denominators are averaged."""

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
        """The ask under r+, which falls back to the reference answer if the group has no correct response to show."""
        if not self.positive.startswith("peer"):
            feedback = Feedback[self.positive.upper()]
            return Ask(context=ContextName.ANSWER, feedback=feedback, without_images=self.images == "drop")
        context = ContextName.ANSWER
        return self._peer(context, self.positive, exclude_self=exclude_self, otherwise=context)

    def _peer(self, context: ContextName, source: str, **fields: Any) -> Ask:
        """The ask under a hint that shows a response of the group."""
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
        """The evidence of each ask of `contrast`; None if the step has no evidence."""
        if any(ask not in batch.evidence for ask in self.contrast):
            return None
        return [batch.evidence[ask] for ask in self.contrast]

    def _ratio(self, evidence: Sequence[EvidenceTensors]) -> tuple[EvidenceTensors, EvidenceTensors]:
        """The numerator and the denominator."""
        return evidence[0], mean_of(evidence[1:])

    def _weighing(self, batch: TrainBatch, adv_BT: Tensor, step: int) -> Weighing | None:
        """The weighing of a step; None if the step has no evidence."""
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
        return Weighing(adv_BT, numerator, denominator, weighed_BT, parts)

    def _may_weigh_BT(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        """Whether the options let a token's weight differ from 1."""
        return batch.mask_BT.bool()

    def _metrics(self, batch: TrainBatch, step: int, weighing: Weighing | None) -> Metrics:
        if weighing is None:
            return credit_metrics(None, batch, batch.mask_BT, self.lam_at(step))
        moved_BT = weighing.weighed_BT & (weighing.credit.adv_BT != 0)
        numerator_BT = weighing.numerator.logp_BT
        return credit_metrics(weighing.credit, batch, moved_BT, self.lam_at(step), self.dead_band, numerator_BT)


def mean_of(evidence: Sequence[EvidenceTensors]) -> EvidenceTensors:
    """The mean log-probs of K asks, each sequence's over the asks that apply to it."""
    applicable_KB = torch.stack([each.applicable_B for each in evidence])
    logp_KBT = torch.stack([each.logp_BT for each in evidence])
    sum_BT = torch.where(applicable_KB[:, :, None], logp_KBT, 0.0).sum(dim=0)
    return EvidenceTensors(sum_BT / applicable_KB.sum(dim=0).clamp(min=1)[:, None], applicable_KB.any(dim=0))


def mixture_of(evidence: Sequence[EvidenceTensors]) -> EvidenceTensors:
    """The log of the mean probability of K asks, each sequence's over the asks that apply to it (arXiv:2606.11709).

    It is never below the mean of the log-probs (`mean_of`), and equal to it where the K log-probs are equal.
    """
    applicable_KB = torch.stack([each.applicable_B for each in evidence])
    logp_KBT = torch.stack([each.logp_BT for each in evidence])
    total_BT = torch.where(applicable_KB[:, :, None], logp_KBT, -torch.inf).logsumexp(dim=0)
    logp_BT = total_BT - applicable_KB.sum(dim=0).clamp(min=1).log()[:, None]
    applicable_B = applicable_KB.any(dim=0)
    return EvidenceTensors(torch.where(applicable_B[:, None], logp_BT, 0.0), applicable_B)


def in_groups_with(flag_B: Tensor, group_B: Tensor) -> Tensor:
    """Whether a sequence belongs to a group in which some sequence has the flag, [B]."""
    return torch.isin(group_B, group_B[flag_B])
