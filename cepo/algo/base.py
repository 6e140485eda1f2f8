"""What an algorithm is: its parameters, the evidence it asks for, and one rule for the advantages or the loss.

The trainer is blind to everything else. A batch holds what was sampled and measured; an algorithm turns it into
adv_BT and, with the policy being trained, into a loss.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from cepo.algo.auxiliary import AuxiliaryContext, AuxiliaryModel
from cepo.algo.batch import Student, TrainBatch
from cepo.algo.teacher import TeacherSource
from cepo.messages.groups import Ask, EvidencedGroup, Feedback, PromptTask, TeachWhen
from cepo.messages.vocabulary import changed

Metrics = dict[str, float]
LAGGING_CAP = 2.0
"""Of importance weights where rollouts lag and nothing else is said."""


@dataclass(frozen=True)
class Advantages:
    """The advantage of every token of a step, and what the step's metrics say about it."""

    adv_BT: Tensor
    """Zero on padding."""
    metrics: Metrics = field(default_factory=dict)


@dataclass(frozen=True)
class LossOutput:
    """A scalar to minimise, and sums over tokens that the learner divides by the step's token counts."""

    loss: Tensor
    token_sums: Metrics
    """Over the tokens the policy sampled for itself."""
    demonstration_sums: Metrics = field(default_factory=dict)
    """Over the tokens of demonstrations."""


class Supply(Protocol):
    """Further prompts for a step."""

    @property
    def prompts(self) -> int:
        """How many prompts the step began with."""
        ...

    def draw(self, count: int) -> tuple[PromptTask, ...]:
        """Tasks for the next prompts that the step has not had; fewer where the data set has no more."""
        ...


class Algorithm(BaseModel):
    """A method: frozen and closed, so that an unknown option is an error that names it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    name: str

    def changed(self, key: str) -> bool:
        """Whether an option differs from the method's default."""
        return changed(self, key)

    def refuse_idle(self, keys: Iterable[str], why: str) -> None:
        """Refuses a changed option that the other options leave without effect.

        Raises:
            ValueError: "KEY has no effect WHY", for the first of the keys that was changed.
        """
        for key in filter(self.changed, keys):
            raise ValueError(f"{key} has no effect {why}")

    @property
    def asks(self) -> tuple[Ask, ...]:
        """The evidence the method needs."""
        return ()

    @property
    def teach_when(self) -> TeachWhen:
        """Which groups' evidence can matter."""
        return TeachWhen.ALWAYS

    @property
    def teacher_source(self) -> TeacherSource:
        """Whose weights the teacher has."""
        return TeacherSource()

    @property
    def shows_solution(self) -> bool:
        """Whether a context or a prompt holds the reference solution."""
        return any(ask.feedback is Feedback.SOLUTION for ask in self.asks)

    @property
    def reasoning_delimiter(self) -> str:
        """The string that ends a reasoning step of a response, such as a line break; empty if steps do not matter."""
        return ""

    @property
    def scores_steps(self) -> bool:
        """Whether the method needs `reward.scorer`."""
        return False

    @property
    def offline(self) -> bool:
        """Whether the method learns from pairs of given responses, a chosen and a rejected one; nothing is sampled."""
        return False

    @property
    def whole_groups(self) -> bool:
        """Whether the loss looks at the sequences of a group together, so that a micro-batch may not split it."""
        return self.offline

    def for_lagging_rollouts(self) -> Self:
        """The method where the policy that samples is steps behind: what it was not told is set to bear that."""
        return self

    def asks_at(self, step: int) -> tuple[Ask, ...]:
        """The evidence this step needs; none when it could not matter."""
        return self.asks

    def follow_up(self, groups: Sequence[EvidencedGroup], step: int, supply: Supply) -> tuple[PromptTask, ...]:
        """Tasks wanted after seeing a step's groups, follow-ups that came back included; none ends the step.

        A follow-up names its group in `origin`; tasks from the supply are prompts like the first. A task that the step
        has had, even one that failed, is not sent again.
        """
        return ()

    def select(self, groups: Sequence[EvidencedGroup], supply: Supply) -> Sequence[EvidencedGroup]:
        """The groups to train on."""
        return groups

    def auxiliary_model(self, context: AuxiliaryContext) -> AuxiliaryModel:
        """The model trained beside the policy; called once a run."""
        return AuxiliaryModel()

    def learns_at(self, step: int) -> bool:
        """Whether the policy learns at this step; an auxiliary model may have to learn alone first."""
        return True

    def advantages(self, batch: TrainBatch, step: int) -> Advantages:
        """The advantages of a step and their metrics, computed once; a method without rewards returns zeros."""
        return Advantages(torch.zeros_like(batch.mask_BT))

    def diagnostics(self, batch: TrainBatch, adv_BT: Tensor, logp_BT: Tensor, step: int) -> Metrics:
        """Metrics that need the log-probs of the policy as it was trained; they replace those of `advantages`.

        Only RLSD with student_logp="current" has any: it weighs tokens inside the loss.

        Args:
            adv_BT: the advantages that the loss was given.
            logp_BT: log-probs of the tokens when the loss was computed; 0 for tokens that skipped the model.
        """
        return {}

    def has_gradient_B(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        """Whether a sequence has any gradient; the others count in the denominators and skip the model."""
        return (adv_BT != 0).any(dim=1)

    def logp_old_BT(self, batch: TrainBatch) -> Tensor | None:
        """Log-probs that stand for the policy at the start of the step; None: the trainer computes them."""
        return None

    @abstractmethod
    def loss(
        self, student: Student, logp_old_BT: Tensor, batch: TrainBatch, adv_BT: Tensor, minibatch: TrainBatch
    ) -> LossOutput:
        """The loss of a micro-batch; `minibatch` is the mini-batch it is part of, whose counts are the denominators."""
