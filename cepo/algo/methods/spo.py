"""SPO-chain (arXiv:2505.23564): credit for segments of a response that end where decisions are made."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cepo.algo.batch import TrainBatch
from cepo.algo.methods.continuations import Continued, PartCredit
from cepo.algo.segments import CONFIDENT, chain_advantages, cut_points, decisions
from cepo.messages.groups import Completion


class Decisive(PartCredit):
    """SPO's probability mask: tokens that were no decisions stay out of the loss and its denominators."""

    confident: float = Field(default=CONFIDENT, gt=0, le=1)
    """A token of a greater probability was no decision; 1: all tokens count."""

    def loss_mask_BT(self, batch: TrainBatch) -> Tensor:
        return super().loss_mask_BT(batch) * decisions(batch.rollout_logp_BT, confident=self.confident)


class SpoChain(Decisive, Continued):
    """A segment's advantage is the value at its end minus that at its start; the last one ends at the reward."""

    name: Literal["spo-chain"] = "spo-chain"
    interval: int = Field(default=5, ge=1)
    """Decisions in a segment."""

    def states(self, completion: Completion) -> list[int]:
        return [cut + 1 for cut in self._cuts(torch.tensor(tuple(completion.logps)))]

    def credit_T(self, batch: TrainBatch, row: int) -> Tensor:
        logp_T = batch.rollout_logp_BT[row, : len(batch.response_ids[row])]
        found = [(cut, self.value(batch, row, cut + 1)) for cut in self._cuts(logp_T)]
        known = {cut: value for cut, value in found if value is not None}  # else the segment before runs on
        score = float(batch.reward_B[row])
        return chain_advantages(logp_T, list(known), list(known.values()), score, confident=self.confident)

    def _cuts(self, logp_T: Tensor) -> list[int]:
        return cut_points(logp_T, interval=self.interval, confident=self.confident)[: self.max_states]
