"""VinePPO (arXiv:2410.01679): the advantage of a reasoning step is the change of the state's value."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cepo.algo.batch import TrainBatch
from cepo.algo.methods.continuations import Continued
from cepo.algo.segments import step_advantages
from cepo.messages.groups import Completion


class VinePpo(Continued):
    """VinePPO (arXiv:2410.01679): the advantage of a reasoning step is the change of the value that it makes.

        A_k = r_k + V(s_{k+1}) - V(s_k), for every token of step k

    followed by the clipped surrogate, without whitening. s_k is the prompt with the first k steps, V the mean reward of
    `continuations` fresh continuations, r_k the reward of the response at its last step and 0 before it.
    """

    name: Literal["vineppo"] = "vineppo"
    step_delimiter: str = Field(default="\n", min_length=1)
    """The string that begins a new reasoning step."""

    @property
    def reasoning_delimiter(self) -> str:
        return self.step_delimiter

    def states(self, completion: Completion) -> list[int]:
        starts = dict.fromkeys([0, *completion.step_ends[:-1]])
        return [start for start in starts if start < len(completion.token_ids)]

    def credit_T(self, batch: TrainBatch, row: int) -> Tensor:
        ends = batch.step_ends[row]
        starts = [0, *ends[:-1]]
        rewards = [*[0.0] * (len(ends) - 1), float(batch.reward_B[row])]
        advantages = step_advantages(rewards, [self.value(batch, row, start) for start in starts])
        lengths = torch.tensor([end - start for start, end in zip(starts, ends, strict=True)])
        return torch.tensor(advantages).repeat_interleave(lengths)
