"""What a method is: its options, the evidence it asks for, and one rule for the advantages or the loss.

A batch holds what was sampled and measured. A method turns it into advantages and, with the policy being trained, into
a loss. The trainer knows methods by this interface alone.
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
OFF_POLICY_CAP = 2.0
"""The cap of importance weights in off-policy runs that leave `importance_cap` unset."""


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
    """Sums over the tokens in the loss, which the policy sampled under the plain prompt."""
    demonstration_sums: Metrics = field(default_factory=dict)
    """Sums over the tokens of demonstrations."""
    loss_tokens: int | None = None
    """Number of the tokens in `token_sums`; None if the loss leaves out no sampled token."""


class Supply(Protocol):
    """Further prompts of the data set for a step."""

    @property
    def prompts(self) -> int:
        """The number of prompts that the step began with."""
        ...

    def draw(self, count: int) -> tuple[PromptTask, ...]:
        """Tasks for the next `count` prompts that the step has not used; fewer if the data set has no more."""
        ...


class Algorithm(BaseModel):
    """The base of all methods. Options are frozen, and an unknown option is an error that names it."""

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
        """The evidence that the method needs from the teacher."""
        return ()

    @property
    def teach_when(self) -> TeachWhen:
        """Which groups are sent to the teacher; the evidence of the others cannot change the update."""
        return TeachWhen.ALWAYS

    @property
    def teacher_source(self) -> TeacherSource:
        """The weights that the teacher scores with."""
        return TeacherSource()

    @property
    def shows_solution(self) -> bool:
        """Whether a context or a prompt contains the reference solution."""
        return any(ask.feedback is Feedback.SOLUTION for ask in self.asks)

    @property
    def reasoning_delimiter(self) -> str:
        """The string that ends a reasoning step of a response, such as a line break; empty if steps do not matter."""
        return ""

    @property
    def scores_steps(self) -> bool:
        """Whether the method needs the step scores of `reward.scorer`."""
        return False

    @property
    def offline(self) -> bool:
        """Whether the method learns from given pairs of a chosen and a rejected response, without sampling."""
        return False

    @property
    def continues(self) -> bool:
        """Whether follow-up tasks continue from the first tokens of a response."""
        return False

    @property
    def whole_groups(self) -> bool:
        """Whether the loss compares the sequences of a group, so that a micro-batch must not split a group."""
        return self.offline

    @property
    def sampled_logps_in(self) -> str:
        """The option that compares the rollout engine's log-probs with a model's; empty if none does."""
        chosen = self.model_dump()
        if chosen.get("old_logp") == "rollout":
            return 'old_logp="rollout"'
        if cap := chosen.get("importance_cap"):
            return f"importance_cap={cap:g}"
        if chosen.get("kl_coef") and chosen["kl_in"] == "reward":
            return 'kl_in="reward"'
        return f"confident={chosen['confident']:g}" if chosen.get("confident", 1) < 1 else ""

    def for_lagging_rollouts(self) -> Self:
        """The method for an off-policy run (`loop.lag` above 0): sets the corrections that the user left unset."""
        return self

    def asks_at(self, step: int) -> tuple[Ask, ...]:
        """The evidence that this step needs; empty if no evidence could change the update."""
        return self.asks

    def follow_up(self, groups: Sequence[EvidencedGroup], step: int, supply: Supply) -> tuple[PromptTask, ...]:
        """Further tasks that a step needs, given the groups that have finished, follow-ups included.

        The trainer calls it again after each round, and the step is complete when it returns no new task. A task that
        the step has already had, even a failed one, is not sent again.

        Returns:
            Follow-up tasks, which name their group in `origin`, and tasks drawn from the supply.
        """
        return ()

    def select(self, groups: Sequence[EvidencedGroup], supply: Supply) -> Sequence[EvidencedGroup]:
        """The groups to train on."""
        return groups

    def auxiliary_model(self, context: AuxiliaryContext) -> AuxiliaryModel:
        """Makes the model that is trained beside the policy; called once in a run."""
        return AuxiliaryModel()

    def learns_at(self, step: int) -> bool:
        """Whether the policy is updated at this step; an auxiliary model may have to learn alone first."""
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

    def trained_advantages(self, batch: TrainBatch, adv_BT: Tensor, logp_BT: Tensor, step: int) -> Tensor:
        """The advantages that the loss followed, as the run stores them with its rollouts.

        Only RLSD with student_logp="current" changes them inside the loss.

        Args:
            adv_BT: the advantages that the loss was given.
            logp_BT: log-probs of the tokens when the loss was computed; 0 for tokens that skipped the model.
        """
        return adv_BT

    def has_gradient_B(self, batch: TrainBatch, adv_BT: Tensor) -> Tensor:
        """Whether a sequence has any gradient; the others count in the denominators and skip the model."""
        return (adv_BT != 0).any(dim=1)

    def logp_old_BT(self, batch: TrainBatch) -> Tensor | None:
        """Log-probs of the policy at the start of the step; None if the trainer has to compute them."""
        return None

    @abstractmethod
    def loss(
        self, student: Student, logp_old_BT: Tensor, batch: TrainBatch, adv_BT: Tensor, minibatch: TrainBatch
    ) -> LossOutput:
        """The loss of a micro-batch.

        Args:
            student: the policy being trained, at the tokens of the micro-batch.
            batch: the micro-batch.
            minibatch: the minibatch that it is part of, whose counts are the denominators, so that the losses of all
                micro-batches add up to the loss of the minibatch.
        """
