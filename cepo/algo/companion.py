"""Models trained beside the policy, with an optimiser of their own: CLIPO's head, PPO's critic, ctDPO's estimators.

In a step it first adds to the batch what it knows with its present weights, then the policy learns, then it does.

Shapes: B sequences, T response tokens (padded), D hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cepo.algo.batch import TrainBatch

WEIGHT_DECAY = 0.01
"""Of every companion, as in verl and in CLIPO's released code."""


class Host(Protocol):
    """What the trainer lends a companion: the frozen base, and the batch in the pieces the policy learns it in."""

    @property
    def seed(self) -> int:
        """The run's."""
        ...

    @property
    def hidden_size(self) -> int:
        """D of the base."""
        ...

    @property
    def max_grad_norm(self) -> float:
        """Above it the policy's gradient is scaled down."""
        ...

    def attach(self, adapter: str) -> Sequence[nn.Parameter]:
        """Puts one more adapter on the base, which changes nothing at first, and returns its weights."""
        ...

    def wearing(self, adapter: str) -> AbstractContextManager[None]:
        """The base under an adapter in place of the policy's, for passes forward and backward alike."""
        ...

    def read(self, head: nn.Module, batch: TrainBatch) -> Tensor:
        """head(hidden [N, D]) -> [N] of the last state that predicts each response token, under the adapter worn.

        Returns:
            [B, T], 0 on padding; the gradient reaches the head and the adapter.
        """
        ...

    def logp(self, batch: TrainBatch) -> Tensor:
        """log P(response token) under the adapter worn, [B, T], 0 on padding; the gradient reaches the adapter."""
        ...

    def blended_logp(self, shares: Mapping[str, float], batch: TrainBatch) -> Tensor:
        """log P(response token) under softmax(sum of share x logits of an adapter), [B, T], without a gradient.

        Args:
            shares: of each adapter; they add up to 1.
        """
        ...

    def minibatches(self, batch: TrainBatch) -> list[list[int]]:
        """Rows of every optimiser update of a step."""
        ...

    def microbatches(self, batch: TrainBatch, rows: Sequence[int], *, passes: int = 1) -> Iterable[list[int]]:
        """Parts of the chosen rows, those of this process; several processes share them, and pass in step.

        Args:
            passes: of the base over each part.
        """
        ...

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Puts the sum over the processes in the place of each tensor; all have one type."""
        ...

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The same for gradients."""
        ...


def in_parts(host: Host, batch: TrainBatch, found: Callable[[TrainBatch], Tensor], passes: int = 1) -> Tensor:
    """found(part) [rows, tokens] of every part of a batch, as one [B, T] beside the batch; 0 on padding.

    Args:
        passes: how many `found` makes.
    """
    found_BT = torch.zeros_like(batch.mask_BT)
    for part in host.microbatches(batch, range(batch.size), passes=passes):
        part_BT = found(batch.rows(part))
        found_BT[part, : part_BT.shape[1]] = part_BT.cpu()
    host.add_up([found_BT])
    return found_BT


class Companion:
    """The companion of a method that has none: it changes nothing, learns nothing and has nothing to keep."""

    def prepare(self, batch: TrainBatch, step: int) -> TrainBatch:
        """The batch with what the companion adds to it, before the advantages."""
        return batch

    def update(self, batch: TrainBatch, step: int) -> dict[str, float]:
        """Learns from a prepared batch; returns metrics, of the weights from before where nothing else is said."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that it needs to go on bit for bit."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state.

        Raises:
            KeyError, RuntimeError, ValueError: it is that of another companion.
        """


class TrainedCompanion(Companion):
    """A companion with weights and AdamW."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
