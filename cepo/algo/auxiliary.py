"""Models trained beside the policy with an optimiser of their own: CLIPO's head, PPO's critic, ctDPO's estimators.

One step of training calls an auxiliary model twice: `prepare` adds to the batch what the model computes with its
present weights, then the policy is updated, then `update` trains the model.

Shapes: B sequences, T response tokens (padded), N tokens of all responses, D hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cepo.algo.batch import TrainBatch

WEIGHT_DECAY = 0.01
"""AdamW's weight decay of every auxiliary model, as in verl and in CLIPO's released code."""


class AuxiliaryContext(Protocol):
    """What the trainer gives an auxiliary model: the frozen base, and the policy's minibatches and micro-batches."""

    @property
    def seed(self) -> int:
        """The seed of the run."""
        ...

    @property
    def hidden_size(self) -> int:
        """D of the base model."""
        ...

    @property
    def max_grad_norm(self) -> float:
        """The norm to which gradients are clipped."""
        ...

    def add_adapter(self, adapter: str) -> Sequence[nn.Parameter]:
        """Adds an adapter to the base and returns its weights; a new adapter leaves the base's outputs unchanged."""
        ...

    def using_adapter(self, adapter: str) -> AbstractContextManager[None]:
        """Activates an adapter in place of the policy's, for forward and backward passes."""
        ...

    def apply_head(self, head: nn.Module, batch: TrainBatch) -> Tensor:
        """Applies a head, [N, D] -> [N], to the last hidden states that predict the response tokens.

        The states are those of the base under the active adapter.

        Returns:
            [B, T], 0 on padding; the gradient reaches the head and the active adapter.
        """
        ...

    def logp(self, batch: TrainBatch) -> Tensor:
        """log P(response token) under the active adapter, [B, T], 0 on padding, with gradient."""
        ...

    def blended_logp(self, shares: Mapping[str, float], batch: TrainBatch) -> Tensor:
        """log P(response token) under softmax(sum over adapters of share * logits), [B, T], without gradient.

        Args:
            shares: the share of each adapter's logits; the shares sum to 1. Example: {"right": 2.0, "wrong": -1.0}.
        """
        ...

    def minibatches(self, batch: TrainBatch) -> list[list[int]]:
        """The rows of each optimiser update of a step. Example: [[0, 1, 2, 3], [4, 5, 6, 7]]."""
        ...

    def microbatches(self, batch: TrainBatch, rows: Sequence[int], *, passes: int = 1) -> Iterable[list[int]]:
        """This process's share of the rows, cut into micro-batches.

        Every process makes the same number of forward passes, so that collectives stay in sync.

        Args:
            passes: forward passes that the caller makes over each micro-batch.
        """
        ...

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over the processes. All tensors have one type."""
        ...

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its sum over the processes."""
        ...


def over_microbatches(
    context: AuxiliaryContext, batch: TrainBatch, compute: Callable[[TrainBatch], Tensor], passes: int = 1
) -> Tensor:
    """Applies `compute` to every micro-batch and puts the results together.

    Args:
        compute: maps a micro-batch of b sequences to [b, t].
        passes: forward passes that one call of `compute` makes.

    Returns:
        [B, T] on the batch's device, 0 on padding, summed over the processes.
    """
    result_BT = torch.zeros_like(batch.mask_BT)
    for rows in context.microbatches(batch, range(batch.size), passes=passes):
        micro_BT = compute(batch.rows(rows))
        result_BT[rows, : micro_BT.shape[1]] = micro_BT.cpu()
    context.all_reduce_sum([result_BT])
    return result_BT


class AuxiliaryModel:
    """The auxiliary model of a method that has none: it leaves the batch unchanged and has no state."""

    skipped = 0
    """The number of updates that were skipped because their gradient was not finite."""

    def prepare(self, batch: TrainBatch, step: int) -> TrainBatch:
        """Returns the batch with what the model adds to it, before the advantages are computed."""
        return batch

    def update(self, batch: TrainBatch, step: int) -> dict[str, float]:
        """Trains the model on a prepared batch.

        Returns:
            Metrics, measured before the update unless their description says otherwise.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to continue bit for bit."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads a saved state.

        Raises:
            KeyError, RuntimeError, ValueError: the state belongs to another auxiliary model.
        """


class TrainedAuxiliaryModel(AuxiliaryModel):
    """An auxiliary model with weights, trained by AdamW."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)

    def take_step(self) -> None:
        """Makes an optimiser step with the gradients, unless one is not finite: it would make every weight NaN."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if not gradients or bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all()):
            self.optimizer.step()
        else:
            self.skipped += 1

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
