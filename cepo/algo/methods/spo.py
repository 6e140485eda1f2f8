"""SPO-chain (arXiv:2505.23564): credit for segments of a response that end where an uncertain token is about to
come."""

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
    """SPO's probability mask: tokens that the policy was sure of stay out of the loss and its denominators."""

    confident: float = Field(default=CONFIDENT, gt=0, le=1)
    """Tokens that were sampled with a greater probability are masked. 0.9 as in the paper; 1 masks no token."""

    def loss_mask_BT(self, batch: TrainBatch) -> Tensor:
        return super().loss_mask_BT(batch) * decisions(batch.rollout_logp_BT, confident=self.confident)


class SpoChain(Decisive, Continued):
    """SPO-chain (arXiv:2505.23564): the advantage of a segment is the value at its end minus the value at its start.

        A = V(end of the segment) - V(start of the segment), for every token of the segment

    followed by the clipped surrogate. A segment ends before every `interval`-th token of a probability below
    `confident`. V is the mean reward of `continuations` fresh continuations; the value at the end of the response is
    its reward."""

    name: Literal["spo-chain"] = "spo-chain"
    interval: int = Field(default=5, ge=1)
    """Number of uncertain tokens in a segment. 5 as in the paper."""

    def states(self, completion: Completion) -> list[int]:
        return [cut + 1 for cut in self._cuts(torch.tensor(tuple(completion.logps)))]

    def credit_T(self, batch: TrainBatch, row: int) -> Tensor:
        logp_T = batch.rollout_logp_BT[row, : len(batch.response_ids[row])]
        values = [(cut, self.value(batch, row, cut + 1)) for cut in self._cuts(logp_T)]
        known = {cut: value for cut, value in values if value is not None}  # a cut without a value ends no segment
        score = float(batch.reward_B[row])
        return chain_advantages(logp_T, list(known), list(known.values()), score, confident=self.confident)

    def _cuts(self, logp_T: Tensor) -> list[int]:
        return cut_points(logp_T, interval=self.interval, confident=self.confident)[: self.max_states]
