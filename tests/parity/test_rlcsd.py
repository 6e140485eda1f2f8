"""RLCSD against its released loss, a loop written from its equations, and its identities."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.evidence import mean_of, mixture_of
from cepo.algo.methods.rlcsd import Rlcsd
from cepo.algo.variants import Grpo
from tests.parity.support import Scored, golden, make_batch, random_sample, tensor

CASES = golden("rlcsd")["cases"]


class Given(Rlcsd):
    """RLCSD on advantages that a test gives."""

    def base_advantages(self, batch: TrainBatch) -> Tensor:
        return batch.reward_B[:, None] * batch.mask_BT


def evidenced(method: Rlcsd, batch: TrainBatch, correct_BT: Tensor, wrong_KBT: Tensor, valid_KB: Tensor) -> TrainBatch:
    """The batch with the log-probs under the correct hint and under each wrong hint."""
    everywhere_B = torch.ones(batch.size, dtype=torch.bool)
    evidence = {method.correct: EvidenceTensors(correct_BT, everywhere_B)}
    for ask, logp_BT, valid_B in zip(method.wrong, wrong_KBT, valid_KB, strict=True):
        evidence[ask] = EvidenceTensors(logp_BT, valid_B.bool())
    return replace(batch, evidence=evidence)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_loss_and_gradient_reproduce_the_released_code(case: dict[str, Any]) -> None:
    weighted = case["importance"] is not None
    method = Given(**case["config"], importance_cap=2.0 if weighted else None)
    mask_BT, old_BT, adv_BT = (tensor(case[key]) for key in ("mask", "old", "adv"))
    rollout_BT = old_BT - tensor(case["importance"]).log() if weighted else old_BT
    batch = make_batch(mask_BT, adv_BT[:, 0], torch.zeros(len(mask_BT), dtype=torch.long), rollout_logp_BT=rollout_BT)
    batch = evidenced(method, batch, tensor(case["correct"]), tensor(case["wrong"]), tensor(case["valid"]))
    logp_BT = tensor(case["logp"]).requires_grad_()
    loss = method.loss(Scored(logp_BT), old_BT, batch, method.advantages(batch, 0).adv_BT, batch).loss
    loss.backward()
    assert float(loss.detach()) == pytest.approx(case["loss"], rel=1e-5)
    torch.testing.assert_close(logp_BT.grad, tensor(case["gradient"]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_advantages_are_those_of_a_loop_over_the_equations(seed: int) -> None:
    sample, random = random_sample(seed), torch.Generator().manual_seed(seed)
    method = Rlcsd(tau=0.5, lam=0.7, threshold=0.1, wrong_hints=3)
    shape = sample.batch.mask_BT.shape
    correct_BT, wrong_KBT = -torch.rand(shape, generator=random), -torch.rand(3, *shape, generator=random)
    valid_KB = torch.rand(3, shape[0], generator=random) < 0.6
    valid_KB[1:] &= valid_KB[0]
    batch = evidenced(method, sample.batch, correct_BT, wrong_KBT, valid_KB)
    base_BT, expected_BT = Grpo().advantages(sample.batch, 0).adv_BT, torch.zeros(shape)
    for row, at in sample.batch.mask_BT.nonzero().tolist():
        advantage = float(base_BT[row, at])
        shown = [float(wrong_KBT[k, row, at]) for k in range(3) if valid_KB[k, row]]
        if not shown:
            continue  # the response is not in the loss
        mixture = math.log(sum(math.exp(logp) for logp in shown) / len(shown))
        added = 0.7 * math.tanh((float(correct_BT[row, at]) - mixture) / 0.5)
        moved = advantage + (added if abs(added) > 0.1 else 0.0)
        expected_BT[row, at] = max(0.0, moved) if advantage > 0 else min(0.0, moved) if advantage < 0 else 0.0
    inside_BT = method.loss_mask_BT(batch).bool()
    actual_BT = method.advantages(batch, 0).adv_BT
    torch.testing.assert_close(actual_BT.where(inside_BT, 0.0), expected_BT, rtol=1e-4, atol=1e-6)
    assert (torch.sign(actual_BT) * torch.sign(base_BT) >= 0).all()
    assert method.advantages(batch, 0).metrics["credit/selected_fraction"] > 0


def test_micro_batches_add_up_to_the_loss_of_the_minibatch() -> None:
    sample, random, method = random_sample(3), torch.Generator().manual_seed(3), Rlcsd(tau=0.5, wrong_hints=2, eta=2.0)
    shape = sample.batch.mask_BT.shape
    wrong_KBT = -torch.rand(2, *shape, generator=random)
    everywhere_KB = torch.ones(2, shape[0])
    batch = evidenced(method, sample.batch, -torch.rand(shape, generator=random), wrong_KBT, everywhere_KB)
    adv_BT = method.advantages(batch, 0).adv_BT
    whole = method.loss(Scored(sample.logp_BT), sample.logp_old_BT, batch, adv_BT, batch).loss
    parts = 0.0
    for rows in ([0, 5, 7], [1, 2, 3, 4], [6, 8, 9, 10, 11, 12]):
        micro = batch.rows(rows)
        cut = (rows, slice(micro.mask_BT.shape[1]))
        student = Scored(sample.logp_BT[rows][:, cut[1]])
        parts += float(
            method.loss(student, sample.logp_old_BT[rows][:, cut[1]], micro, adv_BT[rows][:, cut[1]], batch).loss
        )
    assert parts == pytest.approx(float(whole), rel=1e-5)


def test_without_evidence_no_response_is_in_the_loss() -> None:
    sample, method = random_sample(1), Rlcsd()
    batch = replace(sample.batch, evidence={})
    adv_BT = method.advantages(batch, 0).adv_BT
    assert not method.loss_mask_BT(batch).any()
    assert float(method.loss(Scored(sample.logp_BT), sample.logp_old_BT, batch, adv_BT, batch).loss) == 0.0


def test_the_denominator_of_a_mixture_is_the_log_of_the_mean_probability() -> None:
    """At log-probs 0 and -4 the mean of the log-probs is -2, and the log of the mean probability -0.675."""
    applies_B = torch.tensor([True, True])
    one = EvidenceTensors(torch.tensor([[0.0], [-1.0]]), applies_B)
    other = EvidenceTensors(torch.tensor([[-4.0], [-3.0]]), torch.tensor([True, False]))
    assert mean_of([one, other]).logp_BT.flatten().tolist() == [-2.0, -1.0]
    expected = [math.log((1 + math.exp(-4)) / 2), -1.0]
    assert mixture_of([one, other]).logp_BT.flatten().tolist() == pytest.approx(expected)
    nowhere = replace(one, applicable_B=torch.tensor([False, False]))
    assert mixture_of([nowhere, nowhere]).logp_BT.tolist() == [[0.0], [0.0]]


def test_cepo_takes_the_mean_of_log_probs_or_the_mixture() -> None:
    sample, random = random_sample(2), torch.Generator().manual_seed(2)
    mean, mixture = Cepo(wrong_hints=2), Cepo(wrong_hints=2, combine="mixture")
    assert mean.asks == mixture.asks
    everywhere_B = torch.ones(sample.batch.size, dtype=torch.bool)
    shape = sample.batch.mask_BT.shape
    logps = [-3 * torch.rand(shape, generator=random) for _ in mean.asks]
    evidence = {ask: EvidenceTensors(logp, everywhere_B) for ask, logp in zip(mean.asks, logps, strict=True)}
    batch = replace(sample.batch, evidence=evidence)
    for method, denominator_BT in (
        (mean, (logps[1] + logps[2]) / 2),
        (mixture, ((logps[1].exp() + logps[2].exp()) / 2).log()),
    ):
        one = replace(
            batch,
            evidence={
                Cepo().asks[0]: evidence[mean.asks[0]],
                Cepo().asks[1]: EvidenceTensors(denominator_BT, everywhere_B),
            },
        )
        torch.testing.assert_close(method.advantages(batch, 0).adv_BT, Cepo().advantages(one, 0).adv_BT)
    with pytest.raises(ValueError, match="combine has no effect with wrong_hints=1"):
        Cepo(combine="mixture")
