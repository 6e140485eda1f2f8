"""Golden values of the published losses, reproduced by the public functions. Each golden file names its source."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.core import masked_mean
from cepo.algo.kl import kl_terms
from cepo.algo.losses import aggregate, clipped_terms, dual_clip_fraction, importance_ratio, ratio_clip_fractions
from cepo.algo.surrogates import cispo_terms, gspo_terms, gspo_token_terms, sapo_terms, sequence_ratio
from cepo.algo.value import value_clipped, value_terms
from services.verifier.rewards import overlong
from tests.parity.support import golden, tensor

EASYR1, VERL, KL = golden("policy_loss_easyr1"), golden("policy_loss_verl"), golden("kl_and_value")
AVERAGES: dict[str, Any] = {"token": "token-mean", "seq": "seq-mean-token-mean"}
VERL_NAMES = {"vanilla": "default", "gspo": "gspo_token"}  # verl's GSPO has the gradient of the token form
CASES = [
    *({"impl": "easyr1", **case, "agg": AVERAGES[case["avg"]]} for case in EASYR1["cases"]),
    *({"impl": "verl", **case, "loss_type": VERL_NAMES.get(case["fn"], case["fn"])} for case in VERL["cases"]),
]
LOGP_BT, OLD_BT = tensor(EASYR1["inputs"]["log_probs"]), tensor(EASYR1["inputs"]["old_log_probs"])
MASK_BT = tensor(EASYR1["inputs"]["response_mask"])


def case_name(case: dict[str, Any]) -> str:
    clip = f"{case['clip_low']}-{case['clip_high']}" if "clip_low" in case else "no_clip"
    return f"{case['impl']}-{case['loss_type']}-{clip}-{case['agg']}-{case['adv']}"


def terms(case: dict[str, Any], logp_BT: Tensor, adv_BT: Tensor) -> Tensor:
    dual = case.get("clip_c", case.get("clip_dual"))
    clip = {key: case.get(key) for key in ("clip_low", "clip_high")}
    match case["loss_type"]:
        case "default":
            return clipped_terms(logp_BT, OLD_BT, adv_BT, **clip, dual_clip=dual)
        case "gspo":
            return gspo_terms(logp_BT, OLD_BT, adv_BT, MASK_BT, **clip, dual_clip=dual)
        case "gspo_token":
            return gspo_token_terms(logp_BT, OLD_BT, adv_BT, MASK_BT, **clip, dual_clip=dual)
        case "cispo":
            low, high = 1 - case["clip_low"], 1 + case["clip_high"]
            return cispo_terms(logp_BT, OLD_BT, adv_BT, ratio_min=low, ratio_max=high)
        case "sapo":
            return sapo_terms(logp_BT, OLD_BT, adv_BT, tau_pos=case["tau_pos"], tau_neg=case["tau_neg"])
    raise AssertionError(case["loss_type"])


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_loss_and_gradient_reproduce_the_published_code(case: dict[str, Any]) -> None:
    logp_BT = LOGP_BT.clone().requires_grad_()
    loss = aggregate(terms(case, logp_BT, tensor(EASYR1["inputs"]["advantages"][case["adv"]])), MASK_BT, case["agg"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(case["loss"]), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(logp_BT.grad, tensor(case["grad"]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", [case for case in CASES if "pg_clipfrac_higher" in case["metrics"]], ids=case_name)
def test_clip_fractions_reproduce_easyr1(case: dict[str, Any]) -> None:
    adv_BT, metrics = tensor(EASYR1["inputs"]["advantages"][case["adv"]]), case["metrics"]
    by_sequence = case["loss_type"].startswith("gspo")
    ratio_BT = sequence_ratio(LOGP_BT, OLD_BT, MASK_BT) if by_sequence else importance_ratio(LOGP_BT, OLD_BT)
    low_BT, high_BT = ratio_clip_fractions(ratio_BT, adv_BT, clip_low=case["clip_low"], clip_high=case["clip_high"])
    assert masked_mean(low_BT | high_BT, MASK_BT) == pytest.approx(metrics["pg_clipfrac_higher"], rel=1e-5)
    dual_BT = dual_clip_fraction(ratio_BT, adv_BT, dual_clip=case["clip_dual"])
    assert masked_mean(dual_BT, MASK_BT) == pytest.approx(metrics["pg_clipfrac_lower"], rel=1e-5)


def test_the_published_policy_losses_are_all_there() -> None:
    count = Counter((case["impl"], case["loss_type"]) for case in CASES)
    easyr1 = {"default": 8, "gspo": 4, "gspo_token": 8, "cispo": 8, "sapo": 4}
    verl = {"default": 10, "gspo_token": 2, "cispo": 2, "sapo": 2}
    assert count == {("easyr1", name): n for name, n in easyr1.items()} | {
        ("verl", name): n for name, n in verl.items()
    }


@pytest.mark.parametrize("form", KL["kl"])
def test_kl_reproduces_easyr1(form: Any) -> None:
    inputs = KL["inputs"]
    kl_BT = kl_terms(tensor(inputs["log_probs"]), tensor(inputs["ref_log_probs"]), form)
    torch.testing.assert_close(kl_BT, tensor(KL["kl"][form]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("average", KL["value_loss"])
def test_value_loss_reproduces_easyr1(average: str) -> None:
    inputs, expected = KL["inputs"], KL["value_loss"][average]
    mask_BT, clip_range = tensor(inputs["response_mask"]), inputs["cliprange_value"]
    tensors = tensor(inputs["vpreds"]), tensor(inputs["values"]), tensor(inputs["returns"])
    loss = aggregate(value_terms(*tensors, clip_range=clip_range), mask_BT, AVERAGES[average])
    assert float(loss) == pytest.approx(expected["loss"], rel=1e-5)
    clipped_BT = value_clipped(*tensors, clip_range=clip_range)
    assert masked_mean(clipped_BT, mask_BT) == pytest.approx(expected["metrics"]["vf_clipfrac"], rel=1e-5)


@pytest.mark.parametrize("case", golden("segment_methods")["dapo_overlong"], ids=lambda case: f"length_{case['len']}")
def test_overlong_penalty_reproduces_dapo(case: dict[str, Any]) -> None:
    assert overlong(case["len"], case["max"], case["buffer"]) == pytest.approx(case["penalty"], abs=1e-12)
