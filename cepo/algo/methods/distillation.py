"""Self-distillation: the student learns the distribution that the same model has once it is shown what is right.

    OPSD  shown the solution, on the teacher's likeliest tokens           (github.com/siyan-zhao/OPSD)
    SDPO  shown a correct response of the group, on the student's ones    (arXiv:2601.20802)

They differ in their defaults, and in nothing else. There is no reward in the loss: rewards only say which responses
can be shown. A gradient goes through the student alone.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cepo.algo.base import OFF_POLICY_CAP, Advantages, Algorithm, LossOutput
from cepo.algo.batch import EvidenceTensors, Student, TrainBatch
from cepo.algo.divergence import Remainder, generalized_jsd, importance_weight, sampled_token
from cepo.algo.losses import Aggregation, Totals, aggregate, importance_ratio
from cepo.algo.teacher import TeacherSource
from cepo.errors import UserError
from cepo.messages.groups import Ask, ContextName, Feedback, Pick, Want, Weights

Support = Literal["teacher_topk", "student_topk", "full", "sampled"]
Shown = Literal["answer", "solution", "peer_answer", "peer_full"]
MAX_VOCABULARY = 4096
"""The largest vocabulary of which a whole distribution travels for every token."""


class Distillation(Algorithm):
    """A divergence between the student and the teacher at every token that the student sampled.

    The student's likeliest tokens are those of the policy that sampled, as the teacher service finds them under the
    plain context. On policy these are the student's own; where a step makes several updates, or the rollouts lag, the
    student has moved since and its present likeliest tokens may be others.
    """

    beta: float = Field(default=0.5, ge=0, le=1)
    """J = beta KL(T || M) + (1 - beta) KL(S || M); 0 is exactly KL(T || S) and 1 is exactly KL(S || T)."""
    support: Support = "teacher_topk"
    """The tokens that are compared: the likeliest ones of either, the whole vocabulary, or the sampled token alone."""
    top: int = Field(default=100, ge=1)
    """How many are the likeliest."""
    remainder: Remainder = "tail"
    """What becomes of the mass outside the likeliest tokens."""
    weight: float = Field(default=1.0, gt=0)
    aggregation: Aggregation = "token-mean"
    ratio_cap: float | None = Field(default=None, gt=0)
    """Weighs each token by min(exp(new - old), cap), without a gradient; None: off."""
    importance_cap: float | None = Field(default=None, ge=0)
    """Truncated importance weights min(exp(old - rollout), cap); 0: off; None: 2 if `loop.lag` is not 0, else off."""
    positive: Shown = "answer"
    """What the teacher is shown: the reference answer or solution, or a correct response of the group, its answer or
    the whole. A response is never shown itself."""
    pick: Literal["reward", "shortest", "most_common", "random"] = "reward"
    """Which correct response is shown."""
    teacher: TeacherSource = TeacherSource()
    apply_to: Literal["all", "demo"] = "all"
    """demo: only responses for which there is a correct one to show; all: the others are shown the answer."""

    @model_validator(mode="after")
    def _meaningful(self) -> Self:
        if not self.support.endswith("topk"):
            self.refuse_idle(("remainder", "top"), f"with support={self.support!r}")
        if self.support == "sampled" and self.beta != 1.0:
            raise ValueError(f"support='sampled' is an estimate of KL(S || T): it needs beta=1.0, not {self.beta}")
        if not self.shows_peers:
            self.refuse_idle(("pick",), f"with positive={self.positive!r}, which shows no response of the group")
        if not self.shows_peers and self.apply_to == "demo":
            raise ValueError(f"apply_to='demo' needs responses to show, and positive={self.positive!r} shows none")
        return self

    def for_lagging_rollouts(self) -> Self:
        unsaid = self.importance_cap is None
        return self.model_copy(update={"importance_cap": OFF_POLICY_CAP}) if unsaid else self

    @property
    def shows_peers(self) -> bool:
        """Whether other responses of the group are shown."""
        return self.positive.startswith("peer")

    @property
    def teacher_source(self) -> TeacherSource:
        return self.teacher

    @property
    def ask(self) -> Ask:
        """The teacher's distribution."""
        return Ask(
            context=ContextName.ANSWER,
            want=Want.LOGPROBS if self.support == "sampled" else Want.DISTRIBUTION,
            otherwise=ContextName.ANSWER if self.shows_peers and self.apply_to == "all" else None,
            exclude_self=self.shows_peers,
            feedback=Feedback[self.positive.upper()],
            pick=Pick[self.pick.upper()],
            top=self.top if self.support.endswith("topk") else 0,
            support=Weights.POLICY if self.support == "student_topk" else Weights.TEACHER,
        )

    @property
    def asks(self) -> tuple[Ask, ...]:
        return (self.ask,)

    def advantages(self, batch: TrainBatch, step: int) -> Advantages:
        """No advantages; the metrics say which share of the responses has a teacher, and which share of the groups
        has a correct response to show.
        """
        metrics = {
            "distill/evidence_fraction": float(self._applicable_B(batch).float().mean()),
            "distill/success_group_fraction": _share_of_groups(batch.correct_B, batch.group_B),
        }
        return Advantages(torch.zeros_like(batch.mask_BT), metrics)

    def has_gradient_B(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        return self._mask_BT(batch).any(dim=1)

    def loss(
        self, student: Student, logp_old_BT: Tensor, batch: TrainBatch, adv_BT: Tensor, minibatch: TrainBatch
    ) -> LossOutput:
        mask_BT, totals = self._mask_BT(batch), Totals.of(self._mask_BT(minibatch), minibatch.max_tokens)
        if not mask_BT.any():
            return LossOutput(aggregate(student.logp_BT, mask_BT, self.aggregation, totals), {})
        found, logp_BT = batch.evidence[self.ask], student.logp_BT.detach()
        columns_BTC = self._compared(student, found)
        loss_BT, sums_BT = columns_BTC[..., 0], reports(columns_BTC)
        if self.ratio_cap is not None:
            loss_BT = loss_BT * importance_weight(logp_BT, logp_old_BT, cap=self.ratio_cap)
            over_BT = importance_ratio(logp_BT, logp_old_BT) > self.ratio_cap
            sums_BT["distill/ratio_clip_fraction"] = over_BT.float()
        if self.importance_cap:
            loss_BT = loss_BT * importance_weight(logp_old_BT, batch.rollout_logp_BT, cap=self.importance_cap)
        loss = self.weight * aggregate(loss_BT, mask_BT, self.aggregation, totals)
        return LossOutput(loss, {key: masked_sum(value_BT, mask_BT) for key, value_BT in sums_BT.items()})

    def _compared(self, student: Student, found: EvidenceTensors) -> Tensor:
        """`compared` for the response tokens, [B, T, 3]."""
        if self.support == "sampled":
            return student.per_token(_at_sample, found.logp_BT)
        remainder: Remainder = "ignore" if self.support == "full" else self.remainder

        def likeliest(logits_NV: Tensor, target_N: Tensor, ids_Nk: Tensor, teacher_Nk: Tensor) -> Tensor:
            logp_NV = logits_NV.log_softmax(dim=1)
            loss_N = generalized_jsd(logp_NV, ids_Nk, teacher_Nk, beta=self.beta, remainder=remainder)
            return compared(loss_N, logp_NV, ids_Nk, teacher_Nk)

        assert found.top_ids_BTk is not None
        assert found.top_logp_BTk is not None
        return student.per_token(likeliest, found.top_ids_BTk, found.top_logp_BTk)

    def _applicable_B(self, batch: TrainBatch) -> Tensor:
        found = batch.evidence.get(self.ask)
        return torch.zeros_like(batch.demonstration_B) if found is None else found.applicable_B

    def _mask_BT(self, batch: TrainBatch) -> Tensor:
        """The tokens of the loss."""
        return batch.mask_BT * self._applicable_B(batch)[:, None]


class Opsd(Distillation):
    """OPSD: the teacher has read the solution; one rollout of a prompt would do."""

    name: Literal["opsd"] = "opsd"
    top: int = Field(default=50, ge=1)
    remainder: Remainder = "renormalize"
    positive: Shown = "solution"


class Sdpo(Distillation):
    """SDPO: the teacher has seen another, correct response of the group; without one there is nothing to learn."""

    name: Literal["sdpo"] = "sdpo"
    support: Support = "student_topk"
    ratio_cap: float | None = Field(default=2.0, gt=0)
    positive: Shown = "peer_full"
    apply_to: Literal["all", "demo"] = "demo"


def compared(loss_N: Tensor, logp_NV: Tensor, ids_Nk: Tensor, teacher_Nk: Tensor) -> Tensor:
    """The loss of each token beside the mass that the student and the teacher have on the support: [N, 3]."""
    student_N = logp_NV.detach().gather(1, ids_Nk).exp().sum(dim=1)
    return torch.stack([loss_N, student_N, teacher_Nk.detach().exp().sum(dim=1)], dim=1)


def reports(compared_BTC: Tensor) -> dict[str, Tensor]:
    """What `compared` says of every token, by metric."""
    divergence_BT, student_BT, teacher_BT = compared_BTC.detach().unbind(dim=-1)
    return {
        "distill/divergence": divergence_BT,
        "distill/student_mass": student_BT,
        "distill/teacher_mass": teacher_BT,
        "distill/tail_mass": (1.0 - teacher_BT).clamp(min=0.0),
    }


def masked_sum(value_BT: Tensor, mask_BT: Tensor) -> float:
    """The sum over the positions where the mask is set."""
    return float(torch.where(mask_BT.bool(), value_BT, 0.0).sum())


def check_support(asks: tuple[Ask, ...], vocabulary: int) -> None:
    """Refuses to send the whole distribution of a large vocabulary for every token.

    Raises:
        UserError: an ask wants it, and the vocabulary has more than `MAX_VOCABULARY` tokens.
    """
    if vocabulary > MAX_VOCABULARY and any(ask.want is Want.DISTRIBUTION and ask.top == 0 for ask in asks):
        raise UserError(
            f'algorithm.support="full": the model\'s vocabulary has {vocabulary} tokens and at most {MAX_VOCABULARY} '
            'can travel for every token; set algorithm.support = "teacher_topk" or "student_topk"'
        )


def _at_sample(logits_NV: Tensor, target_N: Tensor, teacher_N: Tensor) -> Tensor:
    logp_NV, ids_N1 = logits_NV.log_softmax(dim=1), target_N[:, None]
    return compared(sampled_token(logp_NV, ids_N1, teacher_N[:, None]), logp_NV, ids_N1, teacher_N[:, None])


def _share_of_groups(flag_B: Tensor, group_B: Tensor) -> float:
    """The share of groups in which some sequence has the flag; 0 without groups."""
    return len(group_B[flag_B].unique()) / max(1, len(group_B.unique()))
