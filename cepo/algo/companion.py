"""A model trained beside the policy, with an optimiser of its own: CLIPO's head, PPO's critic.

In a step it first adds to the batch what it knows with its present weights, then the policy learns, then it does.

Shapes: B sequences, T response tokens (padded), D hidden units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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

    def read(self, adapter: str, head: nn.Module, batch: TrainBatch) -> Tensor:
        """head(hidden [N, D]) -> [N] of the last state that predicts each response token, under an adapter.

        Returns:
            [B, T], 0 on padding; the gradient reaches the head and the adapter.
        """
        ...

    def minibatches(self, batch: TrainBatch) -> list[list[int]]:
        """Rows of every optimiser update of a step."""
        ...

    def microbatches(self, batch: TrainBatch, rows: Sequence[int]) -> Iterable[list[int]]:
        """Rows of every pass of this process, of the chosen rows; several processes share them."""
        ...

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Puts the sum over the processes in the place of each tensor; all have one type."""
        ...

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The same for gradients."""
        ...


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
