"""Students and teachers with known logits, and the divergences as plain loops over the vocabulary.

Shapes: B sequences, T response tokens (padded), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.messages.groups import Ask, Want, Weights
from tests.parity.support import Distributed, make_batch

VOCABULARY = 7


@dataclass(frozen=True)
class Lesson:
    """A batch, and the student's and the teacher's logits at every token."""

    batch: TrainBatch
    student_BTV: Tensor
    teacher_BTV: Tensor
    target_BT: Tensor
    logp_old_BT: Tensor

    def student(self, rows: Sequence[int] | None = None) -> Distributed:
        """Returns the student of the chosen rows, cut to the width of `TrainBatch.rows`."""
        rows = list(range(self.batch.size)) if rows is None else list(rows)
        mask_BT = self.batch.rows(rows).mask_BT
        width = mask_BT.shape[1]
        return Distributed(self.student_BTV[rows, :width], self.target_BT[rows, :width], mask_BT)


def make_lesson(ask: Ask, seed: int = 0, *, applicable: Sequence[bool] = (True, True, False, True, True)) -> Lesson:
    """Returns five ragged sequences of two groups. The fourth is empty; `applicable` says which have a teacher."""
    random = torch.Generator().manual_seed(seed)
    lengths, width = torch.tensor([4, 2, 3, 0, 5]), 5
    student_BTV, teacher_BTV = (torch.randn(5, width, VOCABULARY, generator=random) * 1.5 for _ in range(2))
    target_BT = torch.randint(VOCABULARY, (5, width), generator=random)
    mask_BT = (torch.arange(width) < lengths[:, None]).float()
    batch = make_batch(mask_BT, torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0]), torch.tensor([4, 4, 4, 2, 2]))
    own_BT = student_BTV.log_softmax(-1).gather(-1, target_BT[..., None]).squeeze(-1)
    old_BT = (own_BT + torch.randn(5, width, generator=random)) * mask_BT
    lesson = Lesson(batch, student_BTV.requires_grad_(), teacher_BTV, target_BT, old_BT)
    return taught(lesson, ask, torch.tensor(applicable))


def taught(lesson: Lesson, ask: Ask, applicable_B: Tensor) -> Lesson:
    """Returns the lesson with the teacher's evidence; it is zero where not applicable and on padding."""
    teacher_BTV = lesson.teacher_BTV.log_softmax(-1)
    where_BT = lesson.batch.mask_BT.bool() & applicable_B[:, None]
    sampled_BT = teacher_BTV.gather(-1, lesson.target_BT[..., None]).squeeze(-1)
    evidence = EvidenceTensors(torch.where(where_BT, sampled_BT, 0.0), applicable_B)
    if ask.want is Want.DISTRIBUTION:
        whose_BTV = lesson.student_BTV.detach() if ask.support is Weights.POLICY else teacher_BTV
        ids_BTk = whose_BTV.topk(min(ask.top or VOCABULARY, VOCABULARY)).indices
        top_BTk = teacher_BTV.gather(-1, ids_BTk)
        ids_BTk, top_BTk = ids_BTk * where_BT[..., None], torch.where(where_BT[..., None], top_BTk, 0.0)
        evidence = replace(evidence, top_ids_BTk=ids_BTk, top_logp_BTk=top_BTk)
    return replace(lesson, batch=replace(lesson.batch, evidence={ask: evidence}))


def softmax(logits: Sequence[float]) -> list[float]:
    """Returns the probabilities of logits."""
    top = max(logits)
    terms = [math.exp(x - top) for x in logits]
    return [term / sum(terms) for term in terms]


def loop_divergence(
    student: Sequence[float], teacher: Sequence[float], ids: Sequence[int], beta: float, remainder: str
) -> float:
    """Returns the generalised JSD of two distributions on the support `ids`, from its definition."""
    s, t = ([p[i] for i in ids] for p in (student, teacher))
    if remainder == "tail":
        s, t = ([*p, 1.0 - sum(p)] for p in (s, t))
    if remainder == "renormalize":
        s, t = ([x / sum(p) for x in p] for p in (s, t))
    if beta == 0:
        return _kl(t, s)
    if beta == 1:
        return _kl(s, t)
    mixture = [beta * b + (1 - beta) * a for a, b in zip(s, t, strict=True)]
    return beta * _kl(t, mixture) + (1 - beta) * _kl(s, mixture)


def loop_topk_jsd(student: Sequence[float], teacher: Sequence[float], ids: Sequence[int], rest_factor: float) -> float:
    """Returns HDPO's JSD. The teacher is renormalised on its top k, and is 0 on the student's remaining mass."""
    s, t = ([p[i] for i in ids] for p in (student, teacher))
    t = [x / sum(t) for x in t]
    mixture = [(a + b) / 2 for a, b in zip(s, t, strict=True)]
    return (_kl(t, mixture) + _kl(s, mixture)) / 2 + rest_factor * math.log(2) * (1 - sum(s))


def _kl(p: Sequence[float], q: Sequence[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
