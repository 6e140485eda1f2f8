"""Log-probs of given tokens under a large vocabulary, without keeping the logits.

The logits are computed in tiles of tokens by words, which stay in the cache, and a running log-sum-exp. For the
gradient the same sweep sums the expected embedding, because

    d log P(y) / d hidden = (W[y] - sum_v P(v) W[v]) / temperature

This takes two matrix products, as many as a loop that keeps the logits; recomputing them would take three.

Legend: N tokens, C tokens and W words of a tile, D hidden size, V vocabulary size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cepo.model.linear import product

TILES = {"cpu": (1024, 1024), "cuda": (4096, 16384), "meta": (4096, 16384)}
"""Tokens and words of a tile: 4 MiB of logits fit the cache of a CPU core, a GPU needs large products, and
counts on the meta device are those of a GPU."""


def target_logps(hidden_ND: Tensor, target_N: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    """log P(target) for logits hidden @ weight.T / temperature: [N] float32. The weight gets no gradient."""
    return _TargetLogps.apply(hidden_ND, target_N, weight_VD, temperature)


class _TargetLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, target_N: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
        tokens, words = TILES[hidden_ND.device.type]
        with_slope = ctx.needs_input_grad[0]
        sweeps = [
            _sweep(hidden_CD, target_C, weight_VD, temperature, words, with_slope)
            for hidden_CD, target_C in zip(hidden_ND.split(tokens), target_N.split(tokens), strict=True)
        ]
        if with_slope:
            ctx.save_for_backward(torch.cat([slope_CD for _, slope_CD in sweeps]))
        return torch.cat([logp_C for logp_C, _ in sweeps])

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        (slope_ND,) = ctx.saved_tensors
        return (grad_N[:, None] * slope_ND).to(slope_ND.dtype), None, None, None


def _sweep(
    hidden_CD: Tensor, target_C: Tensor, weight_VD: Tensor, temperature: float, words: int, with_slope: bool
) -> tuple[Tensor, Tensor]:
    """log P(target) [C] and its derivative with respect to the hidden state [C, D], one pass over the vocabulary.

    Without a slope the second tensor has no meaning.
    """
    top_C = torch.full_like(target_C, -torch.inf, dtype=torch.float32)
    sum_C, picked_C = torch.zeros_like(top_C), torch.zeros_like(top_C)
    mean_CD = torch.zeros_like(hidden_CD, dtype=torch.float32) if with_slope else hidden_CD
    for start in range(0, len(weight_VD), words):
        tile_WD = weight_VD[start : start + words]
        logit_CW = product(hidden_CD, tile_WD).float()
        if temperature != 1.0:
            logit_CW /= temperature
        at_C = target_C - start
        here_C = (at_C >= 0) & (at_C < len(tile_WD))
        value_C = logit_CW.gather(1, at_C.clamp(0, len(tile_WD) - 1)[:, None]).squeeze(1)
        picked_C = torch.where(here_C, value_C, picked_C)
        before_C, top_C = top_C, torch.maximum(top_C, logit_CW.amax(1))
        weight_CW = logit_CW.sub_(top_C[:, None]).exp_()
        shrink_C = (before_C - top_C).exp_()
        sum_C = sum_C * shrink_C + weight_CW.sum(1)
        if with_slope:
            mean_CD *= shrink_C[:, None]
            mean_CD += product(weight_CW.to(tile_WD.dtype), tile_WD.T)
    logp_C = picked_C - top_C - sum_C.log()
    if not with_slope:
        return logp_C, mean_CD
    slope_CD = (weight_VD[target_C] - mean_CD / sum_C[:, None]) / temperature
    return logp_C, slope_CD.to(hidden_CD.dtype)
