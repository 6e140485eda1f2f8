"""The policy's update in one step: what its loss reads, and what it measures over micro-batches and ranks.

Shapes: B sequences, T response tokens (padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cepo.algo.base import Algorithm, LossOutput, Metrics
from cepo.algo.batch import TrainBatch
from cepo.algo.diagnostics import engine_metrics
from cepo.model.forward import ResponseStates
from cepo.model.transfer import to_device
from services.trainer.learning.ranks import Ranks


@dataclass
class UpdateTotals:
    """Sums over the trained tokens of a step."""

    loss: float = 0.0
    sampled_tokens: int = 0
    """Tokens that the policy sampled from its own prompt."""
    demonstration_tokens: int = 0
    loss_tokens: int = 0
    """Those of the sampled tokens that are in the loss."""
    token_sums: Metrics = field(default_factory=dict)
    """Metrics summed over the tokens in the loss."""
    demonstration_sums: Metrics = field(default_factory=dict)
    """Metrics summed over the tokens of demonstrations."""

    def add(self, other: UpdateTotals) -> None:
        """Adds the totals of a micro-batch or of another rank."""
        self.loss += other.loss
        self.sampled_tokens += other.sampled_tokens
        self.demonstration_tokens += other.demonstration_tokens
        self.loss_tokens += other.loss_tokens
        for sums, more in (
            (self.token_sums, other.token_sums),
            (self.demonstration_sums, other.demonstration_sums),
        ):
            sums.update({key: sums.get(key, 0.0) + value for key, value in more.items()})

    def metrics(self, minibatches: int) -> Metrics:
        """The mean loss of the mini-batches, and every sum divided by the number of its tokens."""
        counted, demonstrated = max(1, self.loss_tokens), max(1, self.demonstration_tokens)
        return {
            "loss/policy": self.loss / minibatches,
            "clip/ppo_low": 0.0,
            "clip/ppo_high": 0.0,
            **{key: value / counted for key, value in self.token_sums.items()},
            **{key: value / demonstrated for key, value in self.demonstration_sums.items()},
            "tokens/trained": float(self.sampled_tokens + self.demonstration_tokens),
        }


class TokenRecord:
    """What an update measured at each token, as [B, T] tensors on the CPU; 0 where no gradient was computed."""

    def __init__(self, batch: TrainBatch) -> None:
        self.logp_BT = torch.zeros_like(batch.mask_BT)
        """Log-probs when the token was trained on."""
        self.logp_old_BT = torch.zeros_like(batch.mask_BT)
        """Log-probs under the policy at the start of the step."""
        self.sampled_BT = torch.zeros_like(batch.mask_BT)
        """1 on tokens that the policy sampled from its own prompt."""

    def write(self, rows: Sequence[int], logp_BT: Tensor, logp_old_BT: Tensor, sampled_BT: Tensor) -> None:
        """Writes the values of a micro-batch, which may be narrower than the batch."""
        micro_3BT = torch.stack([logp_BT.detach(), logp_old_BT, sampled_BT]).cpu()
        for whole_BT, micro_BT in zip((self.logp_BT, self.logp_old_BT, self.sampled_BT), micro_3BT, strict=True):
            whole_BT[rows, : micro_BT.shape[1]] = micro_BT


@dataclass
class PolicyUpdate:
    """The update of one step: the losses of its micro-batches, and the metrics once all ranks are done."""

    algorithm: Algorithm
    batch: TrainBatch
    adv_BT: Tensor
    has_gradient_B: Tensor
    """Sequences with a gradient; the others count in denominators and skip the model."""
    logp_old_BT: Tensor | None
    """None while the policy still is the one at the start of the step: its log-probs then are the student's own."""
    totals: UpdateTotals = field(default_factory=UpdateTotals)
    grad_norms: list[float] = field(default_factory=list)
    """The gradient norm of every mini-batch with a finite one, before clipping."""
    skipped: int = 0
    """Mini-batches whose gradient was not finite; they took no optimizer step."""

    def __post_init__(self) -> None:
        self.tokens = TokenRecord(self.batch)

    def backward(self, rows: Sequence[int], micro: TrainBatch, student: ResponseStates, minibatch: TrainBatch) -> None:
        """Computes the loss of a micro-batch and its gradient, and records its totals and tokens.

        Args:
            rows: the rows of the batch that make up the micro-batch.
            micro: those rows, on the student's device.
            student: the policy's states at their tokens.
            minibatch: the mini-batch of the micro-batch, whose counts are the denominators.
        """
        width, device = micro.mask_BT.shape[1], micro.mask_BT.device
        if self.logp_old_BT is None:
            logp_old_BT = student.logp_BT.detach()
        else:
            logp_old_BT = to_device(self.logp_old_BT[rows, :width], device)
        adv_BT = to_device(self.adv_BT[rows, :width], device)
        output = self.algorithm.loss(student, logp_old_BT, micro, adv_BT, minibatch)
        output.loss.backward()
        sampled_BT = micro.mask_BT * ~micro.demonstration_B[:, None]
        self.totals.add(_totals_of(output, sampled_BT, micro.mask_BT))  # after backward: it waits for the device
        self.tokens.write(rows, student.logp_BT, logp_old_BT, sampled_BT)

    def metrics(self, ranks: Ranks, step: int) -> Metrics:
        """The metrics of the step over all ranks."""
        totals = UpdateTotals()
        for rank_totals in ranks.all_gather(self.totals):
            totals.add(rank_totals)
        tokens = self.tokens
        ranks.all_reduce_sum([tokens.logp_BT, tokens.logp_old_BT, tokens.sampled_BT])
        return {
            **totals.metrics(len(self.grad_norms) + self.skipped),
            "grad_norm": sum(self.grad_norms) / max(1, len(self.grad_norms)),
            "updates/skipped": float(self.skipped),
            **engine_metrics(tokens.logp_old_BT, self.batch.rollout_logp_BT, tokens.sampled_BT),
            **self.algorithm.diagnostics(self.batch, self.adv_BT, tokens.logp_BT, step),
        }


def _totals_of(output: LossOutput, sampled_BT: Tensor, mask_BT: Tensor) -> UpdateTotals:
    loss, sampled, trained = torch.stack([output.loss.detach(), sampled_BT.sum(), mask_BT.sum()]).tolist()
    sums = dict(output.token_sums), dict(output.demonstration_sums)
    counted = int(sampled) if output.loss_tokens is None else output.loss_tokens
    return UpdateTotals(loss, int(sampled), int(trained - sampled), counted, *sums)
