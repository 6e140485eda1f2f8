"""Self-distillation: the student learns the distribution that the same model has when it is shown a right answer.

    OPSD  the teacher reads the solution; compared on the teacher's likeliest tokens       (github.com/siyan-zhao/OPSD)
    SDPO  the teacher reads a correct response; compared on the student's likeliest tokens (arXiv:2601.20802)

The two differ only in their defaults. Rewards are not part of the loss: they only decide which responses can be shown.
The gradient flows through the student alone.
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
from cepo.messages.tasks import evidence_bytes

Support = Literal["teacher_topk", "student_topk", "full", "sampled"]
Shown = Literal["answer", "solution", "peer_answer", "peer_full"]
MAX_VOCABULARY = 4096
"""The largest vocabulary whose whole distribution is sent from the teacher to the trainer for every token."""
MAX_EVIDENCE_BYTES = 2**28
"""The most evidence of a group; a value in Redis has at most twice as many bytes."""


class Distillation(Algorithm):
    """Self-distillation: a divergence between student and teacher at every token that the student sampled.

    With T the teacher's distribution under its hint, S the student's under the plain prompt, and M = beta T + (1 -
    beta) S:

        J = beta KL(T || M) + (1 - beta) KL(S || M)

    The ends are exact: beta 0 is KL(T || S) and beta 1 is KL(S || T). The student's likeliest tokens are found by the
    teacher service under the plain context with the policy that sampled; after several updates in a step, or
    off-policy, the student's present likeliest tokens may differ."""

    beta: float = Field(default=0.5, ge=0, le=1)
    """Mixture of the generalised Jensen-Shannon divergence: 0 is KL(T || S), 1 is KL(S || T). 0.5 as in the code of
    OPSD and SDPO."""
    support: Support = "teacher_topk"
    """The tokens whose probabilities are compared: the `top` likeliest of the teacher or of the student, the full
    vocabulary, or the sampled token alone."""
    top: int = Field(default=100, ge=1)
    """Number of likeliest tokens that are compared. 100 as in SDPO's code."""
    remainder: Remainder = "tail"
    """What happens to the probability outside the compared tokens. tail: it is one more outcome; renormalize: both
    distributions are renormalised on the compared tokens; ignore: it is left out."""
    weight: float = Field(default=1.0, gt=0)
    """Factor of the loss."""
    aggregation: Aggregation = "token-mean"
    """How the losses of tokens become one number. token-mean: the mean over all tokens of the minibatch;
    seq-mean-token-mean: the mean over responses of each response's mean; the others as in policy gradients."""
    ratio_cap: float | None = Field(default=None, gt=0)
    """Multiplies each token's loss by min(pi / pi_old, ratio_cap), without gradient. Unset turns it off."""
    importance_cap: float | None = Field(default=None, ge=0)
    """Cap of the truncated importance weight min(pi_old / pi_rollout, cap) of each token's loss. 0 turns the weights
    off. Unset: 2 if `loop.lag` is above 0, otherwise off."""
    positive: Shown = "answer"
    """What the teacher's hint shows: the reference answer or solution, or the answer or the whole text of a correct
    response of the group. A response is never shown to itself."""
    pick: Literal["reward", "shortest", "most_common", "random"] = "reward"
    """Which correct response of the group is shown: the one of the highest reward, the shortest, one with the most
    common answer, or a random one."""
    teacher: TeacherSource = TeacherSource()
    """The weights of the teacher; see teacher sources."""
    apply_to: Literal["all", "demo"] = "all"
    """Which responses have a loss. demo: those whose group has another correct response to show; all: every response;
    if there is no response to show, the teacher reads the reference answer."""

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
        unset = self.importance_cap is None
        return self.model_copy(update={"importance_cap": OFF_POLICY_CAP}) if unset else self

    @property
    def shows_peers(self) -> bool:
        """Whether the hint shows another response of the group."""
        return self.positive.startswith("peer")

    @property
    def teacher_source(self) -> TeacherSource:
        return self.teacher

    @property
    def ask(self) -> Ask:
        """The ask for the teacher's distribution."""
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
            return LossOutput(aggregate(student.logp_BT, mask_BT, self.aggregation, totals), {}, loss_tokens=0)
        logp_BT = student.logp_BT.detach()
        columns_BTC = self._compared(student, batch.evidence[self.ask])
        loss_BT, sums_BT = columns_BTC[..., 0], reports(columns_BTC)
        if self.ratio_cap is not None:
            loss_BT = loss_BT * importance_weight(logp_BT, logp_old_BT, cap=self.ratio_cap)
            over_BT = importance_ratio(logp_BT, logp_old_BT) > self.ratio_cap
            sums_BT["distill/ratio_clip_fraction"] = over_BT.float()
        if self.importance_cap:
            loss_BT = loss_BT * importance_weight(logp_old_BT, batch.rollout_logp_BT, cap=self.importance_cap)
        loss = self.weight * aggregate(loss_BT, mask_BT, self.aggregation, totals)
        sums = {key: masked_sum(value_BT, mask_BT) for key, value_BT in sums_BT.items()}
        return LossOutput(loss, sums, loss_tokens=int(mask_BT.sum()))

    def _compared(self, student: Student, teacher: EvidenceTensors) -> Tensor:
        """The columns of `compared` for the response tokens, [B, T, 3]."""
        if self.support == "sampled":
            return student.per_token(_at_sample, teacher.logp_BT)
        remainder: Remainder = "ignore" if self.support == "full" else self.remainder

        def likeliest(logits_NV: Tensor, target_N: Tensor, ids_Nk: Tensor, teacher_Nk: Tensor) -> Tensor:
            logp_NV = logits_NV.log_softmax(dim=1)
            loss_N = generalized_jsd(logp_NV, ids_Nk, teacher_Nk, beta=self.beta, remainder=remainder)
            return compared(loss_N, logp_NV, ids_Nk, teacher_Nk)

        assert teacher.top_ids_BTk is not None
        assert teacher.top_logp_BTk is not None
        return student.per_token(likeliest, teacher.top_ids_BTk, teacher.top_logp_BTk)

    def _applicable_B(self, batch: TrainBatch) -> Tensor:
        """Whether the response has a teacher."""
        evidence = batch.evidence.get(self.ask)
        return torch.zeros_like(batch.demonstration_B) if evidence is None else evidence.applicable_B

    def _mask_BT(self, batch: TrainBatch) -> Tensor:
        """The mask of the tokens in the loss."""
        return batch.mask_BT * self._applicable_B(batch)[:, None]


class Opsd(Distillation):
    """OPSD (github.com/siyan-zhao/OPSD): the student matches a teacher that reads the reference solution.

        L = mean over tokens of J(T(. | x, solution, y_<t), S(. | x, y_<t))

    J is the divergence of self-distillation with beta 1/2, on the teacher's 50 likeliest tokens. OPSD needs no rewards,
    and a group size of 1 is enough."""

    name: Literal["opsd"] = "opsd"
    top: int = Field(default=50, ge=1)
    """Number of the teacher's likeliest tokens that are compared. 50 as in OPSD's script."""
    remainder: Remainder = "renormalize"
    """What happens to the probability outside the compared tokens. renormalize as in OPSD's code: both distributions
    are renormalised on the compared tokens; tail: it is one more outcome; ignore: it is left out."""
    positive: Shown = "solution"
    """What the teacher's hint shows. solution as in OPSD's code; answer as in CEPO's paper (Table 7); or a correct
    response of the group."""


class Sdpo(Distillation):
    """SDPO (arXiv:2601.20802): the student matches a teacher that reads another, correct response of the group.

        L = mean over tokens of min(pi / pi_old, ratio_cap) J(T(. | x, correct response, y_<t), S(. | x, y_<t))

    J is the divergence of self-distillation with beta 1/2, on the student's 100 likeliest tokens. Responses of groups
    without another correct response have no loss.
    """

    name: Literal["sdpo"] = "sdpo"
    support: Support = "student_topk"
    """The tokens whose probabilities are compared. student_topk as in SDPO's code; the others as in OPSD."""
    ratio_cap: float | None = Field(default=2.0, gt=0)
    """Multiplies each token's loss by min(pi / pi_old, ratio_cap), without gradient. 2 as in SDPO's code."""
    positive: Shown = "peer_full"
    """What the teacher's hint shows. peer_full as in SDPO's code: the whole text of a correct response."""
    apply_to: Literal["all", "demo"] = "demo"
    """Which responses have a loss. demo as in SDPO's code: those whose group has another correct response; all: every
    response, with the reference answer as the hint if there is no such response."""


def compared(loss_N: Tensor, logp_NV: Tensor, ids_Nk: Tensor, teacher_Nk: Tensor) -> Tensor:
    """Three columns a token, [N, 3]: its loss, and the student's and the teacher's probability mass on the support."""
    student_N = logp_NV.detach().gather(1, ids_Nk).exp().sum(dim=1)
    return torch.stack([loss_N, student_N, teacher_Nk.detach().exp().sum(dim=1)], dim=1)


def reports(compared_BTC: Tensor) -> dict[str, Tensor]:
    """The metrics of every token, [B, T], from the columns of `compared`."""
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


def check_support(asks: tuple[Ask, ...], vocabulary: int, tokens: int) -> None:
    """Refuses asks for distributions that are too much to send for every token.

    Args:
        tokens: the most response tokens of a group.

    Raises:
        UserError: an ask wants the full distribution, and the vocabulary has more than `MAX_VOCABULARY` tokens; or the
            evidence of a group exceeds `MAX_EVIDENCE_BYTES`.
    """
    size = evidence_bytes(asks, vocabulary, tokens)
    sent = f"the evidence of a group of {tokens} response tokens takes {size / 1e6:,.0f} MB"
    if any(ask.want is Want.DISTRIBUTION and ask.top == 0 for ask in asks):
        if vocabulary > MAX_VOCABULARY or size > MAX_EVIDENCE_BYTES:
            raise UserError(
                f'algorithm.support="full": {sent} with a vocabulary of {vocabulary} tokens (at most {MAX_VOCABULARY} '
                f'and {MAX_EVIDENCE_BYTES / 1e6:.0f} MB can travel); set algorithm.support = "teacher_topk" or '
                '"student_topk"'
            )
    elif size > MAX_EVIDENCE_BYTES:
        most = max(1, max(ask.top for ask in asks) * MAX_EVIDENCE_BYTES // size)
        raise UserError(
            f"algorithm.top: {sent}, more than the {MAX_EVIDENCE_BYTES / 1e6:.0f} MB that can travel; set it to "
            f"{most} or less, or lower sampling.max_tokens"
        )


def _at_sample(logits_NV: Tensor, target_N: Tensor, teacher_N: Tensor) -> Tensor:
    """A rule for `Student.per_token`: the columns of `compared` at the sampled token."""
    logp_NV, ids_N1 = logits_NV.log_softmax(dim=1), target_N[:, None]
    return compared(sampled_token(logp_NV, ids_N1, teacher_N[:, None]), logp_NV, ids_N1, teacher_N[:, None])


def _share_of_groups(flag_B: Tensor, group_B: Tensor) -> float:
    """The share of groups in which some sequence has the flag; 0 without groups."""
    return len(group_B[flag_B].unique()) / max(1, len(group_B.unique()))
