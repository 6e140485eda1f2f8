"""An auxiliary context whose base is a table, so that a model trained on it can be checked by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cepo.algo.auxiliary import AuxiliaryModel, TrainedAuxiliaryModel
from cepo.algo.batch import TrainBatch

WORDS = 6
"""V of the table's head."""


@dataclass
class TableContext:
    """Every token of every response has random hidden states of its own; the active adapter multiplies them.

    Rows are recognised by their prompt, so every sequence of a batch needs one of its own.
    """

    hidden_BTD: Tensor
    prompts: Sequence[tuple[int, ...]]
    seed: int = 0
    max_grad_norm: float = 1e9
    updates: int = 1
    rows_per_pass: int = 100
    scales: dict[str, nn.Parameter] = field(default_factory=dict)
    active: str = ""

    @property
    def hidden_size(self) -> int:
        return self.hidden_BTD.shape[2]

    def add_adapter(self, adapter: str) -> Sequence[nn.Parameter]:
        self.scales[adapter] = nn.Parameter(torch.ones(self.hidden_size))
        return [self.scales[adapter]]

    @contextmanager
    def using_adapter(self, adapter: str) -> Iterator[None]:
        self.active = adapter
        yield
        self.active = ""

    def apply_head(self, head: nn.Module, batch: TrainBatch) -> Tensor:
        return self._spread(batch, head(self._hidden_ND(batch) * self.scales[self.active]))

    def logp(self, batch: TrainBatch) -> Tensor:
        return self._logp({self.active: 1.0}, batch)

    @torch.no_grad()
    def blended_logp(self, shares: Mapping[str, float], batch: TrainBatch) -> Tensor:
        return self._logp(shares, batch)

    def logits(self, adapter: str, batch: TrainBatch) -> Tensor:
        """[N, V] of the tokens of a batch, row after row; a word is the powers of a number of its own."""
        words_V = torch.linspace(-1.5, 1.5, WORDS)
        head_VD = words_V[:, None] ** torch.arange(self.hidden_size)
        return self._hidden_ND(batch) * self.scales[adapter] @ head_VD.T

    def _logp(self, shares: Mapping[str, float], batch: TrainBatch) -> Tensor:
        blend_NV = torch.stack([share * self.logits(adapter, batch) for adapter, share in shares.items()]).sum(0)
        target_N = torch.tensor([token for ids in batch.response_ids for token in ids], dtype=torch.long)
        return self._spread(batch, blend_NV.log_softmax(1).gather(1, target_N[:, None]).squeeze(1))

    def _hidden_ND(self, batch: TrainBatch) -> Tensor:
        rows = [self.prompts.index(prompt) for prompt in batch.prompt_ids]
        valid_BT = batch.mask_BT.bool()
        return self.hidden_BTD[rows, : valid_BT.shape[1]][valid_BT]

    def _spread(self, batch: TrainBatch, found_N: Tensor) -> Tensor:
        valid_BT = batch.mask_BT.bool()
        return torch.zeros(valid_BT.shape).index_put(valid_BT.nonzero(as_tuple=True), found_N)

    def minibatches(self, batch: TrainBatch) -> list[list[int]]:
        groups = batch.group_B.unique().tensor_split(self.updates)
        return [torch.isin(batch.group_B, part).nonzero().flatten().tolist() for part in groups]

    def microbatches(self, batch: TrainBatch, rows: Sequence[int], *, passes: int = 1) -> Iterator[list[int]]:
        for at in range(0, len(rows), self.rows_per_pass):
            yield list(rows[at : at + self.rows_per_pass])

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """It is the only process."""

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """It is the only process."""


def with_weights(auxiliary: AuxiliaryModel) -> TrainedAuxiliaryModel:
    """The auxiliary model of a method that trains one."""
    assert isinstance(auxiliary, TrainedAuxiliaryModel)
    return auxiliary
