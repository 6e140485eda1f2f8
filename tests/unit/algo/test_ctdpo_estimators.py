"""The two estimators of critical-token DPO: their losses, minibatches and micro-batches, and empty responses."""

from __future__ import annotations

import math

import pytest
import torch

from cepo.algo.batch import TrainBatch
from cepo.algo.methods.ctdpo import METRICS, RIGHT, WEIGHTS, WRONG
from tests.helpers.contexts import TableContext
from tests.unit.algo.critical import (
    FROZEN,
    LEARNING,
    distributions,
    looped_loss,
    looped_weights,
    loss_of,
    make_estimators,
    make_pairs,
)

SEEDS = range(4)


def side_loss(context: TableContext, name: str, batch: TrainBatch, rows: list[int]) -> float:
    """Returns an estimator's mean -log P per token, over the responses of its side of the pairs."""
    accuracy, probs = float(name == RIGHT), distributions(context, name, batch)
    terms = [
        -math.log(probs[r][t][w])
        for r in rows
        if batch.accuracy_B[r] == accuracy
        for t, w in enumerate(batch.response_ids[r])
    ]
    return math.fsum(terms) / len(terms)


@pytest.mark.parametrize("seed", SEEDS)
def test_each_estimator_learns_its_own_side_by_likelihood_and_stops_when_the_policy_begins(seed: int) -> None:
    batch, _ = make_pairs(seed)
    estimators, context, ctdpo = make_estimators(seed, batch, estimator_steps=40, estimator_lr=2e-2)
    every = list(range(batch.size))
    before = {name: side_loss(context, name, batch, every) for name in (RIGHT, WRONG)}
    assert estimators.prepare(batch, LEARNING) is batch
    report = estimators.update(batch, LEARNING)
    assert list(report) == list(METRICS)
    for name in (RIGHT, WRONG):
        assert report[f"estimator/loss_{name}"] == pytest.approx(before[name], rel=1e-5)
    for step in range(1, 40):
        estimators.update(batch, step)
        assert not ctdpo.learns_at(step)
    after = {name: side_loss(context, name, batch, every) for name in (RIGHT, WRONG)}
    assert after[RIGHT] < before[RIGHT]
    assert after[WRONG] < before[WRONG]
    frozen = {name: scale.detach().clone() for name, scale in context.scales.items()}
    assert ctdpo.learns_at(40)
    assert estimators.update(estimators.prepare(batch, 40), 40) == {}
    assert all(torch.equal(context.scales[name], scale) for name, scale in frozen.items())


@pytest.mark.parametrize("rows_per_pass", [1, 3])
@pytest.mark.parametrize("updates", [1, 2])
def test_the_estimators_gradient_is_of_each_mini_batch_whatever_the_passes(updates: int, rows_per_pass: int) -> None:
    batch, _ = make_pairs(1)
    options = {"updates": updates, "estimator_lr": 1e-12}
    whole, context, _ = make_estimators(1, batch, **options)
    report = whole.update(batch, LEARNING)
    parts = context.minibatches(batch)
    for name in (RIGHT, WRONG):
        expected = math.fsum(side_loss(context, name, batch, rows) for rows in parts) / updates
        assert report[f"estimator/loss_{name}"] == pytest.approx(expected, rel=1e-5)
    split, split_context, _ = make_estimators(1, batch, rows_per_pass=rows_per_pass, **options)
    assert split.update(batch, LEARNING) == pytest.approx(report, rel=1e-4)
    for name in (RIGHT, WRONG):
        torch.testing.assert_close(split_context.scales[name].grad, context.scales[name].grad, rtol=1e-4, atol=1e-6)


def test_a_gradient_above_the_norm_is_scaled_down_for_each_estimator_separately() -> None:
    batch, _ = make_pairs(0)
    estimators, context, _ = make_estimators(0, batch, max_grad_norm=1e-3)
    report = estimators.update(batch, LEARNING)
    for name in (RIGHT, WRONG):
        assert report[f"estimator/grad_norm_{name}"] > 1e-3
        assert float(context.scales[name].grad.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_an_empty_response_weighs_nothing_and_teaches_nothing() -> None:
    batch, logp_BT = make_pairs(0, lengths=[0, 3], pairs=1)
    estimators, context, ctdpo = make_estimators(0, batch)
    empty, other = (RIGHT, WRONG) if batch.accuracy_B[0] == 1 else (WRONG, RIGHT)
    report = estimators.update(batch, LEARNING)
    assert (report[f"estimator/loss_{empty}"], report[f"estimator/grad_norm_{empty}"]) == (0.0, 0.0)
    assert report[f"estimator/loss_{other}"] > 0
    assert context.scales[empty].grad is None
    assert len(estimators.optimizer.state_dict()["state"]) == 1
    prepared = estimators.prepare(batch, FROZEN)
    assert prepared.token_weight_BT is not None
    assert not prepared.token_weight_BT[0].any()
    expected = looped_loss(ctdpo, batch, logp_BT, looped_weights(context, ctdpo, batch))
    assert float(loss_of(ctdpo, prepared, logp_BT)) == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_empty_responses_changes_neither_weights_nor_momentum() -> None:
    batch, logp_BT = make_pairs(0, lengths=[0, 0], pairs=1)
    estimators, _, ctdpo = make_estimators(0, batch)
    assert estimators.update(batch, LEARNING) == dict.fromkeys(METRICS, 0.0)
    assert estimators.optimizer.state_dict()["state"] == {}
    prepared = estimators.prepare(batch, FROZEN)
    assert float(loss_of(ctdpo, prepared, logp_BT)) == pytest.approx(math.log(2))
    assert ctdpo.advantages(prepared, FROZEN).metrics == dict.fromkeys(WEIGHTS, 0.0)
    assert not ctdpo.has_gradient_B(prepared, torch.zeros_like(logp_BT)).any()
