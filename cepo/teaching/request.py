"""What a caller of the scorer waits for, and what can be served together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cepo.messages.groups import ImageRef, PolicyRef
from cepo.model.forward import ResponseStates
from cepo.teaching.handler import Pair

Take = Callable[[ResponseStates, Sequence[int]], list[Any]]
"""What is wanted of the states of a pass, and which pairs they belong to: one item for each."""


@dataclass(eq=False)
class Request:
    """Pairs of one group."""

    pairs: Sequence[Pair]
    data: Mapping[ImageRef, bytes]
    """Of their images."""
    temperature: float
    policy: PolicyRef
    take: Take
    alone: bool = False
    """Whether a pass with others has failed."""
    found: list[Any] = field(default_factory=list)
    """One item for each pair."""
    seconds: float = 0.0
    """Its share, by tokens, of the pass it was in."""

    @property
    def tokens(self) -> int:
        """Of its responses in each context, and of its contexts once each."""
        contexts = {pair.context_ids for pair in self.pairs}
        return sum(map(len, contexts)) + sum(len(pair.response_ids) for pair in self.pairs)

    def goes_with(self, other: Request) -> bool:
        """Whether one pass can serve both."""
        mine, theirs = ((each.take, each.temperature, each.policy) for each in (self, other))
        return mine == theirs and not (self.alone or other.alone)
