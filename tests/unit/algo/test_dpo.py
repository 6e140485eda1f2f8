"""DPO on pairs: golden numbers, plain loops over its formula, and micro-batches."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.algo.methods.dpo import Dpo
from cepo.algo.methods.policy_gradient import REFERENCE
from tests.parity.support import Scored, golden, make_batch

SEEDS = range(4)


def pairs_batch(seed: int, pairs: int = 5, width: int = 6) -> tuple[TrainBatch, Tensor]:
    """Returns ragged pairs in shuffled order, and the policy's log-probs [B, T]."""
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(2 * pairs, generator=random)
    length_B = torch.randint(1, width + 1, (2 * pairs,), generator=random)
    mask_BT = (torch.arange(width) < length_B[:, None]).float()
    logp_BT, reference_BT = (-torch.rand(mask_BT.shape, generator=random) * 3 * mask_BT for _ in range(2))
    batch = make_batch(mask_BT, (order % 2).float(), order // 2)
    measured = EvidenceTensors(reference_BT, torch.ones(2 * pairs, dtype=torch.bool))
    return replace(batch, evidence={REFERENCE: measured}), logp_BT


def looped(algorithm: Dpo, batch: TrainBatch, logp_BT: Tensor) -> tuple[float, dict[str, float]]:
    """Returns the mean loss over pairs and the reported metrics, computed from plain sums."""
    ratio: dict[tuple[int, float], float] = {}
    for row in range(batch.size):
        length = len(batch.response_ids[row])
        reference = batch.evidence[REFERENCE].logp_BT[row]
        log_ratio = sum(float(logp_BT[row, t] - reference[t]) for t in range(length))
        ratio[int(batch.group_B[row]), float(batch.accuracy_B[row])] = log_ratio
    groups = sorted({group for group, _ in ratio})
    losses, reports = [], {"accuracy": 0.0, "margin": 0.0, "chosen": 0.0, "rejected": 0.0}
    for group in groups:
        chosen, rejected = algorithm.beta * ratio[group, 1.0], algorithm.beta * ratio[group, 0.0]
        margin, smooth = chosen - rejected, algorithm.label_smoothing
        losses.append((1 - smooth) * math.log1p(math.exp(-margin)) + smooth * math.log1p(math.exp(margin)))
        of_pair = {"accuracy": float(margin > 0), "margin": margin, "chosen": chosen, "rejected": rejected}
        reports = {key: value + of_pair[key] / len(groups) for key, value in reports.items()}
    return sum(losses) / len(losses), reports


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_loss_is_the_mean_over_pairs_whatever_their_order(seed: int, smoothing: float) -> None:
    algorithm = Dpo(beta=0.3, label_smoothing=smoothing)
    batch, logp_BT = pairs_batch(seed)
    output = algorithm.loss(Scored(logp_BT), logp_BT, batch, torch.zeros_like(logp_BT), batch)
    loss, reports = looped(algorithm, batch, logp_BT)
    assert float(output.loss) == pytest.approx(loss, rel=1e-5)
    tokens = float(batch.mask_BT.sum())
    for key, value in reports.items():
        assert output.token_sums[f"preference/{key}"] / tokens == pytest.approx(value, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_whole_pairs_in_micro_batches_have_the_loss_and_gradient_of_all(seed: int) -> None:
    algorithm = Dpo()
    batch, logp_BT = pairs_batch(seed)
    leaf = logp_BT.clone().requires_grad_()
    whole = algorithm.loss(Scored(leaf), logp_BT, batch, torch.zeros_like(logp_BT), batch)
    whole.loss.backward()
    split = logp_BT.clone().requires_grad_()
    total, sums = 0.0, dict.fromkeys(whole.token_sums, 0.0)
    for groups in ([3, 0], [1], [2, 4]):
        rows = [row for row in range(batch.size) if int(batch.group_B[row]) in groups]
        part = batch.rows(rows)
        width = part.mask_BT.shape[1]
        output = algorithm.loss(
            Scored(split[rows, :width]), logp_BT[rows, :width], part, torch.zeros_like(part.mask_BT), batch
        )
        output.loss.backward()
        total += float(output.loss.detach())
        sums = {key: value + output.token_sums[key] for key, value in sums.items()}
    assert total == pytest.approx(float(whole.loss.detach()), rel=1e-5)
    assert sums == pytest.approx(whole.token_sums, rel=1e-4)
    torch.testing.assert_close(split.grad, leaf.grad)
    assert not leaf.grad[batch.mask_BT == 0].any()


@pytest.mark.parametrize("case", golden("formula_only")["dpo"], ids=lambda case: str(case["label_smoothing"]))
def test_it_reproduces_the_formulas_numbers(case: dict[str, Any]) -> None:
    logp_BT = torch.tensor([[case["policy_rejected"]], [case["policy_chosen"]]])
    reference_BT = torch.tensor([[case["ref_rejected"]], [case["ref_chosen"]]])
    batch = make_batch(torch.ones(2, 1), torch.tensor([0.0, 1.0]), torch.tensor([0, 0]))
    batch = replace(batch, evidence={REFERENCE: EvidenceTensors(reference_BT, torch.ones(2, dtype=torch.bool))})
    algorithm = Dpo(beta=case["beta"], label_smoothing=case["label_smoothing"])
    output = algorithm.loss(Scored(logp_BT), logp_BT, batch, torch.zeros(2, 1), batch)
    assert float(output.loss) == pytest.approx(case["loss"], rel=1e-5)


def test_an_empty_response_stays_beside_the_other_of_its_pair_and_a_pair_of_them_is_left_out() -> None:
    mask_BT = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    batch = make_batch(mask_BT, torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([4, 4, 7, 7]))
    assert Dpo().has_gradient_B(batch, torch.zeros(4, 2)).tolist() == [True, True, False, False]


def test_every_response_learns_though_nothing_is_rewarded() -> None:
    batch, _ = pairs_batch(0)
    adv_BT = Dpo().advantages(batch, 0).adv_BT
    assert not adv_BT.any()
    assert Dpo().has_gradient_B(batch, adv_BT).all()
    assert (Dpo().offline, Dpo().whole_groups, Dpo().asks) == (True, True, (REFERENCE,))
