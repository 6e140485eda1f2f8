"""A step as tensors: what was sampled, what it earned and what was measured about it.

Shapes: B sequences in group order, T the longest response (padded), k likely tokens of a position, D hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from cepo.messages.groups import Ask, ImageRef

Rule = Callable[..., Tensor]
"""rule(logits_NV, target_N, *inputs_N) -> [N, ...]: what is wanted of each token's distribution."""


@dataclass(frozen=True)
class EvidenceTensors:
    """What one ask found. Positions and sequences where it does not apply hold 0."""

    logp_BT: Tensor
    """Log-probs of the sampled tokens."""
    applicable_B: Tensor
    """Whether the ask applied to the sequence."""
    top_ids_BTk: Tensor | None = None
    """The likeliest tokens, where a distribution was wanted."""
    top_logp_BTk: Tensor | None = None
    """Their log-probs."""
    pooled_BD: Tensor | None = None
    """The mean last hidden state, where it was wanted."""
    substitute_B: Tensor | None = None
    """Where the context asked for did not exist and the ask's `otherwise` was scored."""

    def rows(self, index: Tensor, width: int) -> EvidenceTensors:
        """The chosen sequences, cut to `width` tokens."""
        return EvidenceTensors(
            logp_BT=self.logp_BT[index, :width],
            applicable_B=self.applicable_B[index],
            top_ids_BTk=None if self.top_ids_BTk is None else self.top_ids_BTk[index, :width],
            top_logp_BTk=None if self.top_logp_BTk is None else self.top_logp_BTk[index, :width],
            pooled_BD=None if self.pooled_BD is None else self.pooled_BD[index],
            substitute_B=None if self.substitute_B is None else self.substitute_B[index],
        )

    def to(self, device: Any) -> EvidenceTensors:
        """The same with its tensors on a device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class TrainBatch:
    """A step's groups as tensors."""

    prompt_ids: Sequence[tuple[int, ...]]
    """Token ids of each sequence's prompt."""
    response_ids: Sequence[tuple[int, ...]]
    mask_BT: Tensor
    """1 on generated tokens, the end of sequence included."""
    reward_B: Tensor
    """Not a number where the verifier could not say, and for demonstrations."""
    accuracy_B: Tensor
    group_B: Tensor
    rollout_logp_BT: Tensor
    """As the sampling engine reported them; 0 on padding."""
    max_tokens: int
    """The longest response that sampling allows."""
    truncated_B: Tensor
    """Cut at max_tokens."""
    demonstration_B: Tensor
    """Sampled with a privileged prompt and shown to the student under its own: never part of a policy gradient."""
    images: Sequence[tuple[ImageRef, ...]] = ()
    """Of each sequence's prompt, in the order of their placeholders; empty: no prompt has any."""
    evidence: Mapping[Ask, EvidenceTensors] = field(default_factory=dict)
    """By ask; an ask that no group of the step was measured for is absent."""
    prefix_value_BT1: Tensor | None = None
    """[B, T + 1] mean reward of fresh continuations of the first t tokens; not a number where none were sampled."""
    step: int = 0
    """Of the run, from 0."""
    value_BT: Tensor | None = None
    """A critic's values of the tokens, from before the update."""
    token_weight_BT: Tensor | None = None
    """What each token counts in the log-ratio of its response; None: 1."""
    step_ends: Sequence[tuple[int, ...]] = ()
    """Tokens up to the end of each reasoning step of each sequence; empty where no steps were wanted."""
    step_rewards: Sequence[tuple[float, ...]] = ()
    """What a scorer gave each step; empty where none was asked."""

    @property
    def size(self) -> int:
        return len(self.response_ids)

    def rows(self, rows: Sequence[int]) -> TrainBatch:
        """The chosen sequences, cut to their own longest response."""
        index = torch.tensor(rows, dtype=torch.long)
        width = max((len(self.response_ids[row]) for row in rows), default=0)
        value_BT1, weight_BT = self.prefix_value_BT1, self.token_weight_BT
        return TrainBatch(
            prompt_ids=[self.prompt_ids[row] for row in rows],
            response_ids=[self.response_ids[row] for row in rows],
            mask_BT=self.mask_BT[index, :width],
            reward_B=self.reward_B[index],
            accuracy_B=self.accuracy_B[index],
            group_B=self.group_B[index],
            rollout_logp_BT=self.rollout_logp_BT[index, :width],
            max_tokens=self.max_tokens,
            truncated_B=self.truncated_B[index],
            demonstration_B=self.demonstration_B[index],
            images=[self.images[row] for row in rows] if self.images else (),
            evidence={ask: measured.rows(index, width) for ask, measured in self.evidence.items()},
            prefix_value_BT1=None if value_BT1 is None else value_BT1[index, : width + 1],
            step=self.step,
            value_BT=None if self.value_BT is None else self.value_BT[index, :width],
            token_weight_BT=None if weight_BT is None else weight_BT[index, :width],
            step_ends=[self.step_ends[row] for row in rows] if self.step_ends else (),
            step_rewards=[self.step_rewards[row] for row in rows] if self.step_rewards else (),
        )

    def to(self, device: Any) -> Self:
        """The same batch with its tensors on a device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved, evidence={ask: found.to(device) for ask, found in self.evidence.items()})


class Student(Protocol):
    """The policy being trained, at the response tokens of a batch; what it returns carries gradient."""

    @property
    def logp_BT(self) -> Tensor:
        """log P(response token) over the rollout temperature; 0 on padding."""
        ...

    def per_token(self, rule: Rule, *inputs_BT: Tensor) -> Tensor:
        """rule(logits [N, V], sampled token [N], *inputs [N, ...]) of every response token, spread to [B, T, ...]."""
        ...
