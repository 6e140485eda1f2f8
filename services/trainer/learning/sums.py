"""What an update adds up over its micro-batches, and over the ranks that share them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from cepo.algo.base import LossOutput


@dataclass
class Sums:
    """Sums over the tokens of an update."""

    loss: float = 0.0
    sampled: int = 0
    """Tokens the policy sampled for itself."""
    demonstrated: int = 0
    """Tokens of demonstrations."""
    token_sums: dict[str, float] = field(default_factory=dict)
    demonstration_sums: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, output: LossOutput, sampled: int, demonstrated: int) -> Self:
        """Those of one micro-batch."""
        loss = float(output.loss.detach())
        return cls(loss, sampled, demonstrated, dict(output.token_sums), dict(output.demonstration_sums))

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
        for sums, more in (
            (self.token_sums, part.token_sums),
            (self.demonstration_sums, part.demonstration_sums),
        ):
            sums.update({key: sums.get(key, 0.0) + value for key, value in more.items()})


@dataclass(frozen=True)
class Seen:
    """What an update saw of each token, [B, T] on the CPU; 0 where it did not come by."""

    logp_BT: Tensor
    """Log-probs as it was trained on."""
    old_BT: Tensor
    """Log-probs that stood for the policy at the start of the step."""
    sampled_BT: Tensor
    """1 on tokens the policy sampled for itself."""

    def note(self, rows: Sequence[int], logp_BT: Tensor, old_BT: Tensor, sampled_BT: Tensor) -> None:
        """Keeps a micro-batch."""
        kept = ((self.logp_BT, logp_BT), (self.old_BT, old_BT), (self.sampled_BT, sampled_BT))
        for all_BT, part_BT in kept:
            all_BT[rows, : part_BT.shape[1]] = part_BT.detach().cpu()
