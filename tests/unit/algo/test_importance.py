"""Importance corrections against loops over their definitions, and their laws."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch

from cepo.algo.importance import TWO_SIDED, Correction, importance_weights
from cepo.algo.variants import Grpo
from tests.parity.support import Scored, random_sample

CORRECTIONS = get_args(Correction)


def loop(log_ratios: list[float], correction: str, cap: float, floor: float) -> list[float]:
    """The weights of one response's tokens."""
    ratios = [math.exp(min(max(x, -20.0), 20.0)) for x in log_ratios]
    product = math.exp(min(max(sum(log_ratios), -20.0), 20.0))
    mean = math.exp(sum(log_ratios) / max(1, len(log_ratios)))
    match correction:
        case "token_truncate":
            return [min(r, cap) for r in ratios]
        case "token_mask":
            return [r if r <= cap else 0.0 for r in ratios]
        case "sequence_truncate":
            return [min(product, cap)] * len(ratios)
        case "sequence_mask":
            return [product if product <= cap else 0.0] * len(ratios)
        case "icepop":
            return [r if floor <= r <= cap else 0.0 for r in ratios]
    return [float(floor <= mean <= cap)] * len(ratios)


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_weights_are_those_of_a_loop_over_the_definition(correction: Any, seed: int) -> None:
    sample = random_sample(seed)
    batch = sample.batch
    weight_BT = importance_weights(sample.logp_old_BT, batch.rollout_logp_BT, batch.mask_BT, correction, 1.2, 0.8)
    for row in range(batch.size):
        length = len(batch.response_ids[row])
        gaps = (sample.logp_old_BT - batch.rollout_logp_BT)[row, :length].tolist()
        assert weight_BT[row, :length].tolist() == pytest.approx(loop(gaps, correction, 1.2, 0.8), rel=1e-4)
        assert not weight_BT[row, length:].any()
    assert 0 < float((weight_BT == 0).float().mean()) < 1


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_equal_log_probs_are_not_corrected(correction: Any) -> None:
    sample = random_sample(1)
    mask_BT, logp_BT = sample.batch.mask_BT, sample.logp_old_BT
    assert torch.equal(importance_weights(logp_BT, logp_BT, mask_BT, correction, 2.0, 0.5), mask_BT)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_the_loss_of_every_token_is_multiplied_by_its_weight(correction: Any) -> None:
    sample = random_sample(2)
    floor = 0.8 if correction in TWO_SIDED else 0.0
    method = Grpo(importance=correction, importance_cap=1.2, importance_floor=floor)
    batch, old_BT = sample.batch, sample.logp_old_BT
    adv_BT = method.advantages(batch, 0).adv_BT
    logp_BT, plain_BT = (sample.logp_BT.clone().requires_grad_() for _ in range(2))
    method.loss(Scored(logp_BT), old_BT, batch, adv_BT, batch).loss.backward()
    Grpo().loss(Scored(plain_BT), old_BT, batch, adv_BT, batch).loss.backward()
    weight_BT = importance_weights(old_BT, batch.rollout_logp_BT, batch.mask_BT, correction, 1.2, floor)
    torch.testing.assert_close(logp_BT.grad, plain_BT.grad * weight_BT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance_floor": 0.5}, "importance_floor has no effect with importance='token_truncate'"),
        (
            {"importance": "icepop", "importance_floor": 2.0, "importance_cap": 2.0},
            "importance_floor=2.0 must be below importance_cap=2.0",
        ),
        ({"importance": "median"}, "importance"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grpo(**options)


def test_an_unknown_correction_is_refused_by_name() -> None:
    zero_BT = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="unknown correction 'median'"):
        importance_weights(zero_BT, zero_BT, torch.ones(1, 1), "median", 2.0)  # type: ignore[arg-type]
