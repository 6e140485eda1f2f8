"""Values inside a response: the policy goes on several times from a state, a prefix of it; their mean reward is V.

The continuations are graded and never trained on.
"""

from __future__ import annotations

import hashlib
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
    """A policy gradient whose advantages come from parts of a response and compare no responses of a group."""

    kl_coef: float = Field(default=1e-4, ge=0)

    @model_validator(mode="after")
    def _compares_nothing(self) -> Self:
        self.refuse_idle(_COMPARING, f"with {self.name}, which compares parts of one response, not responses")
        if self.kl_in == "reward":
            raise ValueError('kl_in="reward" has no effect: no value knows of the divergence; write kl_in = "loss"')
        return self

    @property
    def credits_tokens(self) -> bool:
        return True

    @abstractmethod
    def credit_T(self, batch: TrainBatch, row: int) -> Tensor:
        """The advantages of one response's tokens; its reward is a number."""

    def base_advantages(self, batch: TrainBatch) -> Tensor:
        adv_BT = torch.zeros_like(batch.mask_BT)
        for row in (batch.reward_B.isfinite() & batch.mask_BT.any(dim=1)).nonzero().flatten().tolist():
            adv_BT[row, : len(batch.response_ids[row])] = self.credit_T(batch, row)
        return adv_BT * self.loss_mask_BT(batch)


class Continued(PartCredit):
    """A step samples, for every response, at most `max_states` x `continuations` more of them."""

    continuations: int = Field(default=9, ge=1)
    """Fresh continuations of a state."""
    max_states: int = Field(default=32, ge=1)
    """States of a response whose value is estimated, the first ones; the rest of it is one part."""

    @abstractmethod
    def states(self, completion: Completion) -> list[int]:
        """Lengths of the prefixes whose values are wanted, ascending, each shorter than the response."""

    def follow_up(self, groups: Sequence[EvidencedGroup], step: int, supply: Supply) -> tuple[PromptTask, ...]:
        """The continuations of every state; the prompt alone is a state that the responses of a group share."""
        wanted = (task for group in groups if group.task.origin is None for task in self._continued(group))
        return tuple(task.model_copy(update={"index": supply.prompts + at}) for at, task in enumerate(wanted))

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
        found = [
            (sample if length else -1, completion.token_ids[:length])
            for sample, completion in enumerate(group.scored.rollout.completions)
            if not group.scored.verdicts[sample].failed
            for length in self.states(completion)[: self.max_states]
        ]
        for sample, prefix in dict.fromkeys(found):
            yield continuation(group.task, sample, prefix, self.continuations)

    def value(self, batch: TrainBatch, row: int, length: int) -> float | None:
        """V of a response's first tokens; None where it is not known."""
        if batch.prefix_value_BT1 is None:
            return None
        value = float(batch.prefix_value_BT1[row, length])
        return value if value == value else None


def continuation(task: PromptTask, sample: int, prefix: tuple[int, ...], samples: int) -> PromptTask:
    """A task that goes on from a prefix of one of a group's responses, with a seed of its own; it is only graded.

    Its index is that of the group, for the caller to replace.

    Args:
        sample: the response; -1 where the prefix is empty, which all of them share.
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
