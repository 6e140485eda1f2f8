"""Random pairs, estimators with random weights, and critical-token DPO as plain loops over its equation.

Shapes: B sequences, T response tokens (padded), D hidden units, V words.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.algo.methods.ctdpo import RIGHT, WRONG, CtDpo, Estimators
from cepo.algo.methods.dpo import Preference
from cepo.algo.methods.policy_gradient import REFERENCE
from tests.helpers.contexts import WORDS, TableContext
from tests.parity.support import Scored, make_batch

PAIRS, WIDTH = 5, 6
LEARNING, FROZEN = 0, 25
"""A step of each phase of the default run: the estimators learn, and the estimators are frozen."""


def make_pairs(seed: int, lengths: list[int] | None = None, pairs: int = PAIRS) -> tuple[TrainBatch, Tensor]:
    """Returns ragged pairs in shuffled order, one response of which is empty, and the policy's log-probs [B, T]."""
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(2 * pairs, generator=random)
    length_B = torch.randint(1, WIDTH + 1, (2 * pairs,), generator=random)
    length_B[0] = 0
    length_B = length_B if lengths is None else torch.tensor(lengths)
    mask_BT = (torch.arange(WIDTH) < length_B[:, None]).float()
    logp_BT, reference_BT = (-torch.rand(mask_BT.shape, generator=random) * 3 * mask_BT for _ in range(2))
    words = [tuple(torch.randint(WORDS, (n,), generator=random).tolist()) for n in length_B.tolist()]
    batch = replace(
        make_batch(mask_BT, (order % 2).float(), order // 2),
        prompt_ids=[(row,) for row in range(2 * pairs)],
        response_ids=words,
        evidence={REFERENCE: EvidenceTensors(reference_BT, torch.ones(2 * pairs, dtype=torch.bool))},
    )
    return batch, logp_BT


def make_estimators(seed: int, batch: TrainBatch, **options: Any) -> tuple[Estimators, TableContext, CtDpo]:
    """Returns two estimators that differ from each other, on a table of hidden states for the batch."""
    random = torch.Generator().manual_seed(100 + seed)
    ctdpo = CtDpo(**{k: v for k, v in options.items() if k in CtDpo.model_fields})
    hidden_BTD = torch.randn(*batch.mask_BT.shape, 4, generator=random)
    of_context = {k: v for k, v in options.items() if k not in CtDpo.model_fields}
    context = TableContext(hidden_BTD, batch.prompt_ids, **of_context)
    estimators = ctdpo.auxiliary_model(context)
    with torch.no_grad():
        for name in (RIGHT, WRONG):
            context.scales[name].copy_(torch.randn(4, generator=random))
    return estimators, context, ctdpo


def distributions(context: TableContext, adapter: str, batch: TrainBatch) -> list[list[list[float]]]:
    """Returns an estimator's probabilities, indexed by response, token and word."""
    rows = iter(context.logits(adapter, batch).detach().double().softmax(1).tolist())
    return [[next(rows) for _ in ids] for ids in batch.response_ids]


def looped_weights(context: TableContext, ctdpo: CtDpo, batch: TrainBatch) -> list[list[float]]:
    """Returns c = right^(1 + s) / wrong^s of each token, normalised over words; 1 - c if rejected, 1 for the last."""
    weights = []
    both = (distributions(context, name, batch) for name in (RIGHT, WRONG))
    for row, (right, wrong) in enumerate(zip(*both, strict=True)):
        ids, weights_T = batch.response_ids[row], []
        for t, token in enumerate(ids):
            scores = [r ** (1 + ctdpo.strength) / w**ctdpo.strength for r, w in zip(right[t], wrong[t], strict=True)]
            prob = scores[token] / math.fsum(scores)
            chosen = batch.accuracy_B[row] == 1
            weight = (1.0 if ctdpo.only_rejected else prob) if chosen else 1.0 - prob
            weights_T.append(1.0 if t + 1 == len(ids) else weight)
        weights.append(weights_T)
    return weights


def looped_loss(ctdpo: CtDpo, batch: TrainBatch, logp_BT: Tensor, weights: list[list[float]]) -> float:
    """Returns the mean over pairs of -log sigmoid(beta (chosen - rejected)), each a weighted sum over tokens."""
    reference_BT = batch.evidence[REFERENCE].logp_BT
    ratios: dict[tuple[int, float], float] = {}
    for row, weights_T in enumerate(weights):
        terms = [w * float(logp_BT[row, t] - reference_BT[row, t]) for t, w in enumerate(weights_T)]
        ratios[int(batch.group_B[row]), float(batch.accuracy_B[row])] = math.fsum(terms)
    losses = []
    for pair in {group for group, _ in ratios}:
        margin, smooth = ctdpo.beta * (ratios[pair, 1.0] - ratios[pair, 0.0]), ctdpo.label_smoothing
        losses.append((1 - smooth) * math.log1p(math.exp(-margin)) + smooth * math.log1p(math.exp(margin)))
    return math.fsum(losses) / len(losses)


def loss_of(algorithm: Preference, batch: TrainBatch, logp_BT: Tensor) -> Tensor:
    return algorithm.loss(Scored(logp_BT), logp_BT, batch, torch.zeros_like(logp_BT), batch).loss
