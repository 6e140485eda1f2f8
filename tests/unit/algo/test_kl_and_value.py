"""Identities of the KL estimators and the value loss. Shapes: B sequences, T tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cepo.algo.kl import kl_terms
from cepo.algo.value import value_terms
from tests.parity.support import random_sample


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


def test_an_unknown_kl_form_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown KL form 'k4'"):
        kl_terms(torch.zeros(1, 1), torch.zeros(1, 1), "k4")  # type: ignore[arg-type]


def test_the_value_loss_without_a_bound_is_half_the_squared_error() -> None:
    value_BT, old_BT, return_BT = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    loss_BT = value_terms(value_BT, old_BT, return_BT, clip_range=torch.inf)
    torch.testing.assert_close(loss_BT, 0.5 * (value_BT - return_BT) ** 2)
