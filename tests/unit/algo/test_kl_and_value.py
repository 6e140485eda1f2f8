"""What the KL forms, the value loss and the overlong penalty promise. Shapes: B sequences, T tokens, V vocabulary."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cepo.algo.kl import full_kl, kl_terms
from cepo.algo.shaping import overlong_penalty
from cepo.algo.value import value_terms
from tests.parity.support import random_sample


@pytest.mark.parametrize("form", ["kl", "low_var_kl"])
def test_the_full_kl_is_the_expectation_of_k1_and_of_k3(form: Any) -> None:
    logits = 0.3 * torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(0))  # k3 stays within its bound
    logp_BTV, ref_BTV = logits.log_softmax(dim=-1)
    expected_BT = (logp_BTV.exp() * kl_terms(logp_BTV, ref_BTV, form)).sum(dim=-1)
    torch.testing.assert_close(full_kl(logp_BTV, ref_BTV), expected_BT, rtol=1e-4, atol=1e-6)
    assert (expected_BT > 0).all()


@pytest.mark.parametrize("form", ["kl", "abs", "mse", "low_var_kl"])
def test_kl_is_zero_where_the_policies_agree_and_only_k1_is_ever_negative(form: Any) -> None:
    sample = random_sample(4)
    assert not kl_terms(sample.logp_BT, sample.logp_BT, form).any()
    assert (kl_terms(sample.logp_BT, sample.logp_old_BT, form) < 0).any() == (form == "kl")


def test_low_var_kl_is_bounded_and_has_no_gradient_however_far_the_policies_are() -> None:
    logp_BT = torch.tensor([[-1000.0, -25.0, 25.0, 1000.0]], requires_grad=True)
    kl_BT = kl_terms(logp_BT, torch.zeros(1, 4), "low_var_kl")
    kl_BT.sum().backward()
    assert torch.equal(kl_BT.detach(), torch.full((1, 4), 10.0))
    assert torch.equal(logp_BT.grad, torch.zeros(1, 4))


def test_full_kl_of_impossible_tokens_is_0_and_its_gradient_a_number() -> None:
    logits = torch.tensor([[[0.0, 1.0, -torch.inf], [0.0, -torch.inf, -torch.inf]]], requires_grad=True)
    ref_BTV = torch.tensor([[[0.0, 1.0, -torch.inf], [0.0, 1.0, 2.0]]]).log_softmax(dim=-1)
    found_BT = full_kl(logits.log_softmax(dim=-1), ref_BTV)
    found_BT.sum().backward()
    assert found_BT.detach()[0].tolist() == pytest.approx([0.0, math.log(1 + math.e + math.e**2)], rel=1e-5)
    assert logits.grad.isfinite().all()


def test_an_unknown_kl_form_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown KL form 'k4'"):
        kl_terms(torch.zeros(1, 1), torch.zeros(1, 1), "k4")  # type: ignore[arg-type]


def test_the_value_loss_without_a_bound_is_half_the_squared_error() -> None:
    value_BT, old_BT, return_BT = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    found_BT = value_terms(value_BT, old_BT, return_BT, clip_range=torch.inf)
    torch.testing.assert_close(found_BT, 0.5 * (value_BT - return_BT) ** 2)


@pytest.mark.parametrize("buffer", [1, 5, 20])
def test_overlong_penalty_falls_evenly_over_the_buffer(buffer: int) -> None:
    penalties = [overlong_penalty(length, 20, buffer) for length in range(20 - buffer, 21)]
    assert penalties == pytest.approx([-k / buffer for k in range(buffer + 1)])


def test_overlong_penalty_without_a_buffer_is_a_step() -> None:
    assert [overlong_penalty(length, 20, 0) for length in (0, 20, 21)] == [0, 0, -1]


@pytest.mark.parametrize("buffer", [-1, 21])
def test_overlong_penalty_refuses_a_buffer_outside_the_length(buffer: int) -> None:
    with pytest.raises(ValueError, match=r"buffer must be within \[0, max_length = 20\]"):
        overlong_penalty(1, 20, buffer)
