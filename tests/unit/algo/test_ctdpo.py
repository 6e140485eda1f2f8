"""Critical-token DPO: weights and loss against plain loops over its equation, and pairs without contrast.

Shapes: B sequences, T response tokens (padded).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from cepo.algo.batch import EvidenceTensors
from cepo.algo.methods.ctdpo import RIGHT, WEIGHTS, WRONG, CtDpo
from cepo.algo.methods.dpo import Dpo
from cepo.algo.methods.policy_gradient import REFERENCE
from tests.parity.support import Scored
from tests.unit.algo.critical import (
    FROZEN,
    LEARNING,
    PAIRS,
    WIDTH,
    distributions,
    looped_loss,
    looped_weights,
    loss_of,
    make_estimators,
    make_pairs,
)

SEEDS = range(4)


@pytest.mark.parametrize(("strength", "only_rejected"), [(0.0, False), (0.5, True), (1.0, False), (1.0, True)])
@pytest.mark.parametrize("seed", SEEDS)
def test_weights_and_loss_are_those_of_the_equation(seed: int, strength: float, only_rejected: bool) -> None:
    batch, logp_BT = make_pairs(seed)
    options = {"strength": strength, "only_rejected": only_rejected, "beta": 0.3, "label_smoothing": 0.1}
    estimators, context, ctdpo = make_estimators(seed, batch, **options)
    prepared = estimators.prepare(batch, FROZEN)
    weights = looped_weights(context, ctdpo, batch)
    assert prepared.token_weight_BT is not None
    for row, weights_T in enumerate(weights):
        assert prepared.token_weight_BT[row].tolist() == pytest.approx(
            [*weights_T, *[0.0] * (WIDTH - len(weights_T))], abs=1e-5
        )
    assert float(loss_of(ctdpo, prepared, logp_BT)) == pytest.approx(
        looped_loss(ctdpo, batch, logp_BT, weights), rel=1e-5
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gradient_of_a_token_is_that_of_dpo_at_the_weighted_margin_times_its_weight(seed: int) -> None:
    batch, logp_BT = make_pairs(seed)
    estimators, _, ctdpo = make_estimators(seed, batch, only_rejected=True)
    prepared = estimators.prepare(batch, FROZEN)
    weight_BT = prepared.token_weight_BT
    assert weight_BT is not None
    leaf = logp_BT.clone().requires_grad_()
    loss_of(ctdpo, prepared, leaf).backward()
    ratio_B = (weight_BT * (logp_BT - batch.evidence[REFERENCE].logp_BT)).sum(1)
    for row in range(batch.size):
        (other,) = [at for at in range(batch.size) if batch.group_B[at] == batch.group_B[row] and at != row]
        side = 1.0 if batch.accuracy_B[row] == 1 else -1.0
        margin = ctdpo.beta * side * float(ratio_B[row] - ratio_B[other])
        slope = -side * ctdpo.beta / (1 + math.exp(margin)) / PAIRS
        torch.testing.assert_close(leaf.grad[row], slope * weight_BT[row])


@pytest.mark.parametrize("seed", SEEDS)
def test_with_weights_of_one_it_is_dpo(seed: int) -> None:
    batch, logp_BT = make_pairs(seed)
    results = []
    for algorithm, trained in ((CtDpo(), replace(batch, token_weight_BT=batch.mask_BT)), (Dpo(), batch)):
        leaf = logp_BT.clone().requires_grad_()
        loss = loss_of(algorithm, trained, leaf)
        loss.backward()
        results.append((float(loss.detach()), leaf.grad))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("seed", SEEDS)
def test_without_strength_and_where_the_estimators_agree_a_chosen_token_weighs_its_probability(seed: int) -> None:
    batch, _ = make_pairs(seed)
    for strength, agree in ((0.0, False), (0.7, True)):
        estimators, context, _ = make_estimators(seed, batch, strength=strength)
        if agree:
            context.scales[WRONG].data.copy_(context.scales[RIGHT].data)
        weight_BT = estimators.prepare(batch, FROZEN).token_weight_BT
        assert weight_BT is not None
        for row, (ids, words) in enumerate(zip(batch.response_ids, distributions(context, RIGHT, batch), strict=True)):
            for t, token in enumerate(ids[:-1]):
                expected = words[t][token] if batch.accuracy_B[row] == 1 else 1 - words[t][token]
                assert float(weight_BT[row, t]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_whole_pairs_in_micro_batches_have_the_loss_of_all(seed: int) -> None:
    batch, logp_BT = make_pairs(seed)
    estimators, _, ctdpo = make_estimators(seed, batch, rows_per_pass=3)
    prepared = estimators.prepare(batch, FROZEN)
    total = 0.0
    for groups in ([3, 0], [1], [2, 4]):
        rows = [row for row in range(batch.size) if int(batch.group_B[row]) in groups]
        part = prepared.rows(rows)
        logp_rows = logp_BT[rows, : part.mask_BT.shape[1]]
        total += float(ctdpo.loss(Scored(logp_rows), logp_rows, part, torch.zeros_like(logp_rows), prepared).loss)
    assert total == pytest.approx(float(loss_of(ctdpo, prepared, logp_BT)), rel=1e-5)


def test_of_a_pair_of_equal_responses_only_the_weights_differ() -> None:
    batch, logp_BT = make_pairs(2, lengths=[4, 4], pairs=1)
    reference_BT = batch.evidence[REFERENCE].logp_BT[[0, 0]]
    batch = replace(
        batch,
        response_ids=[batch.response_ids[0]] * 2,
        evidence={REFERENCE: EvidenceTensors(reference_BT, torch.ones(2, dtype=torch.bool))},
    )
    logp_BT = logp_BT[[0, 0]]
    estimators, context, ctdpo = make_estimators(2, batch)
    context.hidden_BTD[1] = context.hidden_BTD[0]
    prepared = estimators.prepare(batch, FROZEN)
    weight_BT = prepared.token_weight_BT
    assert weight_BT is not None
    torch.testing.assert_close(weight_BT.sum(0), torch.tensor([1.0, 1.0, 1.0, 2.0, 0.0, 0.0]))
    expected = looped_loss(ctdpo, batch, logp_BT, looped_weights(context, ctdpo, batch))
    assert float(loss_of(ctdpo, prepared, logp_BT)) == pytest.approx(expected, rel=1e-5)
    assert float(loss_of(Dpo(), batch, logp_BT)) == pytest.approx(math.log(2))


def test_estimators_that_differ_without_bound_leave_weights_within_zero_and_one() -> None:
    batch, logp_BT = make_pairs(3)
    estimators, context, ctdpo = make_estimators(3, batch, strength=50.0)
    for name in (RIGHT, WRONG):
        context.scales[name].data.mul_(1e3)
    prepared = estimators.prepare(batch, FROZEN)
    assert prepared.token_weight_BT is not None
    assert prepared.token_weight_BT.isfinite().all()
    assert 0.0 <= float(prepared.token_weight_BT.min()) <= float(prepared.token_weight_BT.max()) <= 1.0
    assert math.isfinite(float(loss_of(ctdpo, prepared, logp_BT)))


def test_the_mean_weight_of_either_side_is_reported_once_the_policy_learns() -> None:
    batch, _ = make_pairs(0)
    estimators, context, ctdpo = make_estimators(0, batch)
    assert ctdpo.advantages(batch, LEARNING).metrics == {}
    report = ctdpo.advantages(estimators.prepare(batch, FROZEN), FROZEN).metrics
    weights = looped_weights(context, ctdpo, batch)
    for key, accuracy in zip(WEIGHTS, (1.0, 0.0), strict=True):
        side_weights = [w for row, side in enumerate(weights) if batch.accuracy_B[row] == accuracy for w in side]
        assert report[key] == pytest.approx(math.fsum(side_weights) / len(side_weights), rel=1e-5)


def test_it_learns_offline_from_whole_pairs_and_asks_for_the_base() -> None:
    ctdpo = CtDpo(estimator_steps=2)
    assert (ctdpo.offline, ctdpo.whole_groups, ctdpo.asks) == (True, True, (REFERENCE,))
    assert [ctdpo.learns_at(step) for step in range(4)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("option", "value"), [("estimator_steps", 0), ("strength", -0.1), ("estimator_lr", 0.0), ("beta", 0.0)]
)
def test_a_setting_without_meaning_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{option}\n.*greater than"):
        CtDpo(**{option: value})
