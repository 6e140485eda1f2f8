"""DPO, critical-token DPO and the moving average of weights: golden numbers, plain loops, and edge cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cepo.algo.ema import ema
from cepo.algo.preference import critical_weights, dpo_loss, sequence_log_ratio
from tests.parity.support import golden

FORMULAS = golden("formula_only")
SEEDS = range(4)


@pytest.mark.parametrize("case", FORMULAS["dpo"], ids=lambda case: str(case["label_smoothing"]))
def test_dpo_is_its_formula(case: dict[str, Any]) -> None:
    chosen_P = torch.tensor([case["policy_chosen"] - case["ref_chosen"]])
    rejected_P = torch.tensor([case["policy_rejected"] - case["ref_rejected"]])
    loss = dpo_loss(chosen_P, rejected_P, beta=case["beta"], label_smoothing=case["label_smoothing"])
    assert float(loss) == pytest.approx(case["loss"], rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_equal_log_probs_cost_ln_2(smoothing: float) -> None:
    zero_P = torch.zeros(3)
    assert dpo_loss(zero_P, zero_P, label_smoothing=smoothing).tolist() == pytest.approx([math.log(2)] * 3)


def test_huge_margins_are_finite() -> None:
    far_P = torch.tensor([1e5, -1e5], requires_grad=True)
    loss_P = dpo_loss(far_P, torch.zeros(2))
    loss_P.sum().backward()
    assert loss_P.tolist() == pytest.approx([0.0, 1e4])
    assert far_P.grad.tolist() == pytest.approx([0.0, -0.1])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_sequence_log_ratio_sums_over_the_response(seed: int, weighted: bool) -> None:
    random = torch.Generator().manual_seed(seed)
    logp_BT, ref_BT, weight_BT = (-torch.rand(5, 6, generator=random) for _ in range(3))
    length_B = torch.tensor([0, 6, 3, 1, 4])
    mask_BT = (torch.arange(6) < length_B[:, None]).float()
    ref_BT = torch.where(mask_BT.bool(), ref_BT, -torch.inf)
    ratio_B = sequence_log_ratio(
        logp_BT.requires_grad_(), ref_BT.requires_grad_(), mask_BT, weight_BT if weighted else None
    )
    ratio_B.sum().backward()
    if not weighted:
        weight_BT = torch.ones_like(weight_BT)
    terms = ((logp_BT - ref_BT).detach() * weight_BT).tolist()
    expected = [math.fsum(row[:length]) for row, length in zip(terms, length_B.tolist(), strict=True)]
    torch.testing.assert_close(ratio_B.detach(), torch.tensor(expected))
    assert torch.equal(logp_BT.grad, mask_BT * weight_BT)
    assert ref_BT.grad is None


@pytest.mark.parametrize("only_rejected", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_critical_weights_are_the_estimate_of_the_chosen_and_its_rest_of_the_rejected(
    seed: int, only_rejected: bool
) -> None:
    random = torch.Generator().manual_seed(seed)
    prob_BT = torch.rand(6, 7, generator=random)
    length_B = torch.tensor([0, 7, 3, 1, 4, 0])
    chosen_B = torch.randperm(6, generator=random) % 2 == 0
    expected = torch.zeros(6, 7)
    for row, (length, chosen) in enumerate(zip(length_B.tolist(), chosen_B.tolist(), strict=True)):
        for t in range(length):
            prob = float(prob_BT[row, t])
            weight = (1.0 if only_rejected else prob) if chosen else 1.0 - prob
            expected[row, t] = 1.0 if t == length - 1 else weight
    mask_BT = (torch.arange(7) < length_B[:, None]).float()
    weight_BT = critical_weights(prob_BT, chosen_B, mask_BT, only_rejected=only_rejected)
    torch.testing.assert_close(weight_BT, expected)


def test_the_moving_average_is_its_formula() -> None:
    case = FORMULAS["ema_rate_0.05"]
    teacher = {"w": torch.tensor([case["teacher0"]])}
    for step in case["steps"]:
        teacher = ema(teacher, {"w": torch.tensor([step["student"]])}, 0.05)
        assert float(teacher["w"]) == pytest.approx(step["teacher"], rel=1e-5)


def test_the_moving_average_leaves_its_inputs_and_keeps_the_teacher_s_type() -> None:
    teacher, student = {"w": torch.ones(2, dtype=torch.float64)}, {"w": torch.zeros(2).requires_grad_()}
    averaged = ema(teacher, student, 0.25)["w"]
    assert averaged.tolist() == [0.75, 0.75]
    assert averaged.dtype == torch.float64
    assert not averaged.requires_grad
    assert teacher["w"].tolist() == [1.0, 1.0]
    assert torch.equal(ema(teacher, student, 0.0)["w"], teacher["w"])
    assert torch.equal(ema(teacher, student, 1.0)["w"], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("rate", [-0.1, 1.5, math.nan])
def test_a_rate_outside_the_unit_interval_and_other_names_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate must be within"):
        ema({}, {}, rate)
    with pytest.raises(ValueError, match="weights differ in"):
        ema({"a": torch.ones(1)}, {"b": torch.ones(1)}, 0.5)
