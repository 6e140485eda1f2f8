"""What an update adds up over its micro-batches, and over the ranks that share them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from cepo.algo.base import LossOutput


@dataclass
class Sums:
    """Sums over the tokens of an update."""

    loss: float = 0.0
    sampled: int = 0
    """Tokens the policy sampled for itself."""
    demonstrated: int = 0
    """Tokens of demonstrations."""
    gap: float = 0.0
    token_sums: dict[str, float] = field(default_factory=dict)
    demonstration_sums: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, output: LossOutput, sampled: int, demonstrated: int, gap: float) -> Self:
        """Those of one micro-batch."""
        loss = float(output.loss.detach())
        return cls(loss, sampled, demonstrated, gap, dict(output.token_sums), dict(output.demonstration_sums))

    @classmethod
    def total(cls, parts: Iterable[Sums]) -> Self:
        """The sum of several."""
        total = cls()
        for part in parts:
            total.add(part)
        return total

    def add(self, part: Sums) -> None:
        self.loss += part.loss
        self.sampled += part.sampled
        self.demonstrated += part.demonstrated
        self.gap += part.gap
        for sums, more in (
            (self.token_sums, part.token_sums),
            (self.demonstration_sums, part.demonstration_sums),
        ):
            sums.update({key: sums.get(key, 0.0) + value for key, value in more.items()})
