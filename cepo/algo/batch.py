"""A training step as tensors: what was sampled, its rewards, and the evidence that was measured about it.

Shapes: B sequences in group order, T the longest response (padded), k likely tokens of a position, D hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from cepo.messages.groups import Ask, Given, ImageRef
from cepo.messages.vocabulary import CORRECT_FROM

Rule = Callable[..., Tensor]
"""rule(logits_NV, target_N, *inputs_N) -> [N, ...]: a number (or several) from each token's distribution."""

PER_SEQUENCE = MappingProxyType({"axes": "B"})
"""Metadata of a field with one item a sequence: a tensor [B, ...] or a Python sequence of length B."""
PER_TOKEN = MappingProxyType({"axes": "BT"})
"""Metadata of a tensor [B, T, ...]."""
PER_PREFIX = MappingProxyType({"axes": "BT1"})
"""Metadata of a tensor [B, T + 1], with one item for each prefix of a response, the empty prefix included."""


@dataclass(frozen=True)
class EvidenceTensors:
    """The evidence of one ask. Positions and sequences to which the ask does not apply hold 0."""

    logp_BT: Tensor = field(metadata=PER_TOKEN)
    """Log-probs of the sampled tokens."""
    applicable_B: Tensor = field(metadata=PER_SEQUENCE)
    """Whether the ask applies to the sequence."""
    top_ids_BTk: Tensor | None = field(default=None, metadata=PER_TOKEN)
    """The k likeliest tokens, if the ask wanted a distribution."""
    top_logp_BTk: Tensor | None = field(default=None, metadata=PER_TOKEN)
    """The log-probs of those tokens."""
    pooled_BD: Tensor | None = field(default=None, metadata=PER_SEQUENCE)
    """The mean last hidden state of the response, if the ask wanted it."""
    substitute_B: Tensor | None = field(default=None, metadata=PER_SEQUENCE)
    """Whether the context did not exist and the ask's `otherwise` context was scored in its place."""

    def rows(self, rows: Tensor, width: int) -> Self:
        """The evidence of the chosen sequences, cut to `width` tokens."""
        return _cut(self, rows, width)

    def to(self, device: Any) -> Self:
        """The same evidence with its tensors on a device."""
        return replace(self, **_tensors_on(self, device))


@dataclass(frozen=True)
class TrainBatch:
    """The groups of a step as tensors. A field declares its axes once, in its metadata, and `rows` cuts it by them."""

    prompt_ids: Sequence[tuple[int, ...]] = field(metadata=PER_SEQUENCE)
    """Token ids of each sequence's prompt."""
    response_ids: Sequence[tuple[int, ...]] = field(metadata=PER_SEQUENCE)
    """Token ids of each response, given tokens included, without padding."""
    mask_BT: Tensor = field(metadata=PER_TOKEN)
    """1 on sampled tokens, the end of each turn included; 0 on given tokens, on padding and on sequences without a
    verdict."""
    reward_B: Tensor = field(metadata=PER_SEQUENCE)
    """NaN for a sequence without a verdict, and for a demonstration."""
    accuracy_B: Tensor = field(metadata=PER_SEQUENCE)
    """1 for a correct answer, 0 for a wrong one."""
    group_B: Tensor = field(metadata=PER_SEQUENCE)
    """Integer id of each sequence's group."""
    rollout_logp_BT: Tensor = field(metadata=PER_TOKEN)
    """Log-probs as the sampling engine reported them; 0 at given tokens and on padding."""
    max_tokens: int
    """The longest response that sampling allows, in tokens."""
    truncated_B: Tensor = field(metadata=PER_SEQUENCE)
    """Whether the response was cut at max_tokens."""
    demonstration_B: Tensor = field(metadata=PER_SEQUENCE)
    """Whether the response was sampled with a privileged prompt, and is shown to the student under the plain one.
    A demonstration is never part of a policy gradient."""
    images: Sequence[tuple[ImageRef, ...]] = field(default=(), metadata=PER_SEQUENCE)
    """The images of each sequence's prompt, in the order of their placeholders; empty if no prompt has any."""
    evidence: Mapping[Ask, EvidenceTensors] = field(default_factory=dict)
    """The evidence of each ask. An ask is absent if it was measured for no group of the step."""
    prefix_value_BT1: Tensor | None = field(default=None, metadata=PER_PREFIX)
    """[B, T + 1]: mean reward of fresh continuations of the first t tokens; NaN for prefixes without continuations."""
    step: int = 0
    """The training step, counted from 0."""
    value_BT: Tensor | None = field(default=None, metadata=PER_TOKEN)
    """The critic's values of the tokens before its update (PPO)."""
    token_weight_BT: Tensor | None = field(default=None, metadata=PER_TOKEN)
    """The weight of each token in its response's log-ratio (critical-token DPO); None means 1 everywhere."""
    step_ends: Sequence[tuple[int, ...]] = field(default=(), metadata=PER_SEQUENCE)
    """For each response, the number of tokens up to the end of each reasoning step. Example: ((3, 8), (5,))."""
    step_rewards: Sequence[tuple[float, ...]] = field(default=(), metadata=PER_SEQUENCE)
    """For each response, the score of each reasoning step; an empty tuple without a scorer."""
    given: Sequence[tuple[Given, ...]] = field(default=(), metadata=PER_SEQUENCE)
    """For each response, its tokens that were not sampled; empty if no response has any."""

    @property
    def size(self) -> int:
        """B."""
        return len(self.response_ids)

    @property
    def correct_B(self) -> Tensor:
        """Whether the response is correct."""
        return self.accuracy_B >= CORRECT_FROM

    def rows(self, rows: Sequence[int]) -> Self:
        """The chosen sequences, cut to their longest response.

        Example: of a batch with responses of 5, 2 and 3 tokens, rows([2, 1]) has mask_BT of shape [2, 3].
        """
        index, width = (
            torch.tensor(rows, dtype=torch.long),
            max((len(self.response_ids[row]) for row in rows), default=0),
        )
        evidence = {ask: tensors.rows(index, width) for ask, tensors in self.evidence.items()}
        return replace(_cut(self, index, width), evidence=evidence)

    def to(self, device: Any) -> Self:
        """The same batch with its tensors on a device."""
        evidence = {ask: tensors.to(device) for ask, tensors in self.evidence.items()}
        return replace(self, **_tensors_on(self, device), evidence=evidence)


class Student(Protocol):
    """The policy being trained, at the response tokens of a batch. Everything it returns carries gradient."""

    @property
    def logp_BT(self) -> Tensor:
        """log P(response token) of the logits divided by the rollout temperature; 0 on padding."""
        ...

    def per_token(self, rule: Rule, *inputs_BT: Tensor) -> Tensor:
        """Applies a rule to the distribution of every response token.

        Args:
            rule: called as rule(logits [N, V], sampled token [N], *inputs [N, ...]) on the N response tokens.
            inputs_BT: [B, T, ...]; the rule gets their values at the response tokens.

        Returns:
            The rule's results, put back to [B, T, ...], 0 on padding.
        """
        ...


def _cut(instance: Any, rows: Tensor, width: int) -> Any:
    """A copy of a dataclass in which every field that declares axes has the chosen rows and `width` tokens."""
    changes = {}
    for declared in fields(instance):
        value = getattr(instance, declared.name)
        match declared.metadata.get("axes"):
            case _ if value is None:
                continue
            case "B":
                changes[declared.name] = _items(value, rows)
            case "BT":
                changes[declared.name] = value[rows, :width]
            case "BT1":
                changes[declared.name] = value[rows, : width + 1]
    return replace(instance, **changes)


def _items(value: Tensor | Sequence[Any], rows: Tensor) -> Tensor | Sequence[Any]:
    """The items of the chosen sequences; a field that is empty for every sequence stays empty."""
    if isinstance(value, Tensor):
        return value[rows]
    return [value[row] for row in rows.tolist()] if value else ()


def _tensors_on(instance: Any, device: Any) -> dict[str, Any]:
    """The tensor fields of a dataclass, on a device."""
    return {name: _on(value, device) for name, value in vars(instance).items() if isinstance(value, Tensor)}


def _on(value: Tensor, device: Any) -> Tensor:
    """A tensor on a device; a copy to a GPU leaves from pinned memory and does not wait for the work before it."""
    if torch.device(device).type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)
