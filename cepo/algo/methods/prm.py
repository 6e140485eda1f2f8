"""Process rewards: a scorer rewards every reasoning step, and a token's credit is the sum of the rewards to come.

    step rewards -> normalised over the steps of the group -> summed from a token to the end   (arXiv:2402.03300, 4.1.3)

The form "progress" does not sum: a step's reward is the outcome plus what the step adds to a prover's chances of
success (arXiv:2410.08146)."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cepo.algo.batch import TrainBatch
from cepo.algo.core import group_advantage
from cepo.algo.methods.policy_gradient import PolicyGradient
from cepo.algo.segments import process_advantage_rewards, process_rewards


class Prm(PolicyGradient):
    """GRPO with process rewards (arXiv:2402.03300, section 4.1.3): credit from the step scores of `reward.scorer`.

        r_k = score of step k, plus outcome x the response's reward at the last step
        n_k = (r_k - mean(r of the group)) / (std(r of the group) + advantage_eps)
        A_t = sum of n_k over the steps that end at token t or later

    followed by the clipped surrogate. Mean and deviation are over all steps of the group; `advantage_scale`,
    `advantage_eps` and `std_correction` are those of this normalisation. With form = "progress" (arXiv:2410.08146)
    r_k = outcome x reward + progress x (score_k - score_{k-1}), and A_t is n_k of the token's own step.
    """

    name: Literal["prm"] = "prm"
    step_delimiter: str = Field(default="\n", min_length=1)
    """The string that begins a new reasoning step."""
    form: Literal["score", "difference", "min", "progress"] = "score"
    """The reward of a step. score: its score; difference: its score minus the score before; min: the lowest score of
    the response, at the last step; progress: the outcome plus the difference, for the tokens of that step alone."""
    outcome: float = Field(default=1.0, ge=0)
    """Weight of the response's reward at the last step; with form = "progress", at every step."""
    progress: float = Field(default=1.0, gt=0)
    """With form = "progress": weight of a step's score minus the score before. The first step has none and counts as
    0."""

    @model_validator(mode="after")
    def _meaningful(self) -> Self:
        self.refuse_idle(("estimator",), "with prm, which normalises the rewards of steps")
        if self.kl_in == "reward":
            raise ValueError('kl_in="reward" has no effect: prm rewards steps, not tokens; write kl_in = "loss"')
        if self.form != "progress":
            self.refuse_idle(("progress",), f'with form={self.form!r}; write form = "progress"')
        return self

    @property
    def credits_tokens(self) -> bool:
        return True

    @property
    def reasoning_delimiter(self) -> str:
        return self.step_delimiter

    @property
    def scores_steps(self) -> bool:
        return True

    def base_advantages(self, batch: TrainBatch) -> Tensor:
        mask_BT = self.loss_mask_BT(batch)
        judged = (batch.reward_B.isfinite() & mask_BT.any(dim=1)).nonzero().flatten().tolist()
        earned = [(row, end, reward) for row in judged for end, reward in self._earned(batch, row).items()]
        adv_BT = torch.zeros_like(mask_BT)
        if not earned:
            return adv_BT
        normal_N = group_advantage(
            torch.tensor([reward for _, _, reward in earned]),
            batch.group_B[[row for row, _, _ in earned]],
            eps=self.advantage_eps,
            scale=self.advantage_scale,
            correction=self.std_correction,
        )
        before = dict.fromkeys(judged, 0)
        for (row, end, _), value in zip(earned, normal_N, strict=True):
            adv_BT[row, before[row] : end] += value
            before[row] = end if self.form == "progress" else 0
        return adv_BT * mask_BT

    def _earned(self, batch: TrainBatch, row: int) -> dict[int, float]:
        """The rewards of a response's steps, by the number of tokens up to a step's end, ascending.

        Example: {3: 0.5, 8: 1.9} for steps of 3 and 5 tokens with scores 0.5 and 0.9 and a reward of 1.
        """
        length, outcome = len(batch.response_ids[row]), self.outcome * batch.reward_B[row]
        scores = batch.step_rewards[row] if batch.step_rewards else ()
        if not scores:
            return {length: float(outcome)}
        score_K, ends = torch.tensor(scores), batch.step_ends[row]
        if self.form == "progress":
            before_K = torch.cat([score_K[:1], score_K[:-1]])
            reward_BK = process_advantage_rewards(outcome[None], before_K[None], score_K[None], alpha=self.progress)
            return {end: reward for end, reward in zip(ends, reward_BK[0].tolist(), strict=True) if end > 0}
        end_BK = torch.tensor([ends]) - 1
        reward_T = process_rewards(score_K[None], end_BK, length, form=self.form)[0].tolist()
        reward_T[-1] += float(outcome)
        return {end: reward_T[end - 1] for end in ((length,) if self.form == "min" else ends) if end > 0}
