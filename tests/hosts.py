"""A host whose base is a table, so that what a critic says can be worked out by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cepo.algo.batch import TrainBatch


@dataclass
class TableHost:
    """Hidden states are random and its own for every token of every response; an adapter multiplies them.

    Rows are recognised by their prompt, so every sequence of a batch needs one of its own.
    """

    hidden_BTD: Tensor
    prompts: Sequence[tuple[int, ...]]
    seed: int = 0
    max_grad_norm: float = 1e9
    updates: int = 1
    rows_per_pass: int = 100

    @property
    def hidden_size(self) -> int:
        return self.hidden_BTD.shape[2]

    def attach(self, adapter: str) -> Sequence[nn.Parameter]:
        self.scale = nn.Parameter(torch.ones(self.hidden_size))
        return [self.scale]

    def read(self, adapter: str, head: nn.Module, batch: TrainBatch) -> Tensor:
        rows = [self.prompts.index(prompt) for prompt in batch.prompt_ids]
        valid_BT = batch.mask_BT.bool()
        hidden_ND = self.hidden_BTD[rows, : valid_BT.shape[1]][valid_BT] * self.scale
        return torch.zeros(valid_BT.shape).index_put(valid_BT.nonzero(as_tuple=True), head(hidden_ND))

    def minibatches(self, batch: TrainBatch) -> list[list[int]]:
        groups = batch.group_B.unique().tensor_split(self.updates)
        return [torch.isin(batch.group_B, part).nonzero().flatten().tolist() for part in groups]

    def microbatches(self, batch: TrainBatch, rows: Sequence[int]) -> Iterator[list[int]]:
        for at in range(0, len(rows), self.rows_per_pass):
            yield list(rows[at : at + self.rows_per_pass])

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """It is the only process."""

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """It is the only process."""
