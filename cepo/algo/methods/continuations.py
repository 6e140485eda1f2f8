"""Values inside a response: V of a prefix is the mean reward of fresh continuations that the policy samples from it.

The continuations are graded and never trained on.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cepo.algo.base import Advantages, Supply
from cepo.algo.batch import TrainBatch
from cepo.algo.methods.policy_gradient import PolicyGradient
from cepo.messages.arrays import Int32Array
from cepo.messages.groups import Completion, EvidencedGroup, FollowUp, Origin, PromptTask, Stage

_COMPARING = ("estimator", "advantage_scale", "advantage_eps", "std_correction", "gamma")


class PartCredit(PolicyGradient):
    """A policy gradient whose advantages come from the parts of one response and compare no responses of a group."""

    kl_coef: float = Field(default=1e-4, ge=0)
    """Weight of the KL divergence from the base model in the loss. 1e-4 as in the papers of VinePPO and SPO."""

    @model_validator(mode="after")
    def _compares_nothing(self) -> Self:
        self.refuse_idle(_COMPARING, f"with {self.name}, which compares parts of one response, not responses")
        if self.kl_in == "reward":
            raise ValueError('kl_in="reward" has no effect: values are of rewards without KL; write kl_in = "loss"')
        return self

    @property
    def credits_tokens(self) -> bool:
        return True

    @abstractmethod
    def credit_T(self, batch: TrainBatch, row: int) -> Tensor:
        """The advantages of one response's tokens, [T]. The response has a token and a verdict."""

    def base_advantages(self, batch: TrainBatch) -> Tensor:
        adv_BT = torch.zeros_like(batch.mask_BT)
        for row in (batch.reward_B.isfinite() & batch.mask_BT.any(dim=1)).nonzero().flatten().tolist():
            adv_BT[row, : len(batch.response_ids[row])] = self.credit_T(batch, row)
        return adv_BT * self.loss_mask_BT(batch)


class Continued(PartCredit):
    """Part credit with values from fresh continuations: at most `max_states` x `continuations` of them per response."""

    continuations: int = Field(default=9, ge=1)
    """Number of fresh continuations that estimate the value of a state. 9 as in the papers of VinePPO and SPO."""
    max_states: int = Field(default=32, ge=1)
    """Largest number of states of a response whose values are estimated. The first ones are; what follows them is a
    single part."""

    @property
    def continues(self) -> bool:
        return True

    @abstractmethod
    def states(self, completion: Completion) -> list[int]:
        """Lengths, in tokens, of the prefixes whose values are needed: ascending, each shorter than the response."""

    def follow_up(self, groups: Sequence[EvidencedGroup], step: int, supply: Supply) -> tuple[PromptTask, ...]:
        """The continuations of every state; the responses of a group share the state of the prompt alone."""
        tasks = (task for group in groups if group.task.origin is None for task in self._continued(group))
        return tuple(task.model_copy(update={"index": supply.prompts + at}) for at, task in enumerate(tasks))

    def advantages(self, batch: TrainBatch, step: int) -> Advantages:
        advantages = super().advantages(batch, step)
        known = batch.prefix_value_BT1
        value_N = torch.zeros(0) if known is None else known[known.isfinite()]
        metrics = {
            "value/states": float(len(value_N)),
            "value/mean": float(value_N.mean()) if len(value_N) else 0.0,
            "value/std": float(value_N.std(correction=0)) if len(value_N) else 0.0,
        }
        return Advantages(advantages.adv_BT, advantages.metrics | metrics)

    def _continued(self, group: EvidencedGroup) -> Iterator[PromptTask]:
        states = [
            (sample if length else -1, completion.token_ids[:length])
            for sample, completion in enumerate(group.scored.rollout.completions)
            if not group.scored.verdicts[sample].failed
            for length in self.states(completion)[: self.max_states]
        ]
        for sample, prefix in dict.fromkeys(states):
            yield continuation(group.task, sample, prefix, self.continuations)

    def value(self, batch: TrainBatch, row: int, length: int) -> float | None:
        """V of a response's first `length` tokens; None if it was not estimated."""
        if batch.prefix_value_BT1 is None:
            return None
        value = float(batch.prefix_value_BT1[row, length])
        return None if math.isnan(value) else value


def continuation(task: PromptTask, sample: int, prefix: tuple[int, ...], samples: int) -> PromptTask:
    """A task that continues a prefix of one of a group's responses, with a seed of its own; it is only graded.

    Args:
        sample: the index of the response; -1 for the empty prefix, which the responses share.
        samples: the number of continuations.

    Returns:
        The task, with the index of the group's task, which the caller has to replace.
    """
    name = f"{task.seed}/{task.index}/{sample}/{len(prefix)}".encode()
    changes = {
        "prefix": Int32Array.of(prefix),
        "samples": samples,
        "seed": int.from_bytes(hashlib.sha256(name).digest()[:6], "big"),
        "asks": (),
        "route": (Stage.ROLLOUT, Stage.VERIFY),
        "origin": Origin(kind=FollowUp.CONTINUATION, index=task.index, sample=sample),
        "step_delimiter": "",
    }
    return task.model_copy(update=changes)
