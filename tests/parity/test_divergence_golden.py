"""Golden values of the published distillation losses, reproduced by the public divergence functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.divergence import generalized_jsd, importance_weight, sampled_token, topk_jsd
from cepo.algo.losses import aggregate
from tests.parity.support import golden, tensor

DISTILLATION = golden("distillation")
HDPO = golden("formula_only")["hdpo"]
WHO = ("student", "teacher")
INPUTS = DISTILLATION["inputs"]
TEACHER_BTV = tensor(INPUTS["teacher_logits"])
MASK_BT = tensor(INPUTS["response_mask"])
SAMPLED_BT1 = torch.tensor(INPUTS["sampled_ids"])[..., None]
AGGREGATIONS: dict[str, Any] = {"token": "token-mean", "seq": "seq-mean-token-mean"}

Divergence = Callable[[Tensor, Tensor, Tensor], Tensor]


def student() -> Tensor:
    return tensor(INPUTS["student_logits"]).requires_grad_()


def per_token(logp_BTV: Tensor, teacher_BTV: Tensor, ids_BTk: Tensor, divergence: Divergence) -> Tensor:
    """Returns the divergence of each token, [B, T], evaluated on flat tokens as in the trainer."""
    teacher_BTk = teacher_BTV.gather(-1, ids_BTk)
    return divergence(logp_BTV.flatten(0, 1), ids_BTk.flatten(0, 1), teacher_BTk.flatten(0, 1)).view(MASK_BT.shape)


def top(logits_BTV: Tensor, k: int | None) -> Tensor:
    """Returns the ids of the k largest logits, or of the whole vocabulary if k is None."""
    return logits_BTV.topk(k or logits_BTV.shape[-1]).indices


def jsd(beta: float, *, tail: bool) -> Divergence:
    return lambda *given: generalized_jsd(*given, beta=beta, remainder="tail" if tail else "renormalize")


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def case_id(case: dict[str, Any]) -> str:
    return "-".join(str(value) for value in case.values() if not isinstance(value, list))


@pytest.mark.parametrize("case", DISTILLATION["sdpo"], ids=case_id)
def test_sdpo_and_its_gradient_reproduce_the_published_code(case: dict[str, Any]) -> None:
    logits_BTV = student()
    logp_BTV, teacher_BTV = logits_BTV.log_softmax(-1), TEACHER_BTV.log_softmax(-1)
    if case["mode"] == "sampled":
        loss_BT = per_token(logp_BTV, teacher_BTV, SAMPLED_BT1, sampled_token)
    else:
        tail = case["mode"] == "topk" and case["add_tail"]
        loss_BT = per_token(logp_BTV, teacher_BTV, top(logits_BTV, case["topk"]), jsd(case["alpha"], tail=tail))
    if case["is_clip"] is not None:
        logp_BT = logp_BTV.gather(-1, SAMPLED_BT1).squeeze(-1)
        loss_BT = loss_BT * importance_weight(logp_BT, tensor(INPUTS["old_log_probs"]), cap=case["is_clip"])
    mask_BT = MASK_BT * tensor(INPUTS["distill_mask"])[:, None] if case["use_distill_mask"] else MASK_BT
    loss = aggregate(loss_BT, mask_BT, case["agg"])
    loss.backward()
    assert_close(loss.detach(), torch.tensor(case["loss"]))
    if "grad_student_logits" in case:
        assert_close(logits_BTV.grad, tensor(case["grad_student_logits"]))


@pytest.mark.parametrize("case", DISTILLATION["opsd"], ids=case_id)
def test_opsd_and_its_gradient_reproduce_the_published_code(case: dict[str, Any]) -> None:
    logits_BTV, teacher_BTV = student(), (TEACHER_BTV / case["temperature"]).log_softmax(-1)
    logp_BTV = (logits_BTV / case["temperature"]).log_softmax(-1)
    ids_BTk = top(teacher_BTV, case["top_k_teacher"])
    loss = aggregate(per_token(logp_BTV, teacher_BTV, ids_BTk, jsd(case["beta"], tail=False)), MASK_BT, "token-mean")
    loss.backward()
    assert_close(loss.detach(), torch.tensor(case["loss"]))
    if "grad_student_logits" in case:
        assert_close(logits_BTV.grad, tensor(case["grad_student_logits"]))


def test_sampled_token_opsd_reproduces_the_published_code() -> None:
    case = DISTILLATION["opsd_sampled_token"]
    logits_BTV, teacher_BTV = student(), (TEACHER_BTV / case["temperature"]).log_softmax(-1)
    logp_BTV = (logits_BTV / case["temperature"]).log_softmax(-1)
    loss = aggregate(per_token(logp_BTV, teacher_BTV, SAMPLED_BT1, sampled_token), MASK_BT, "token-mean")
    loss.backward()
    assert_close(loss.detach(), torch.tensor(case["loss"]))
    assert_close(logits_BTV.grad, tensor(case["grad_student_logits"]))


@pytest.mark.parametrize("case", DISTILLATION["rlsd_repo"], ids=case_id)
def test_the_rlsd_repository_s_distillation_is_reproduced(case: dict[str, Any]) -> None:
    beta = 0.5 if "jsd" in case["fn"] else 0.0
    if "topk" not in case["fn"]:
        divergence = jsd(beta, tail=False)
    elif case["add_tail"] or beta:
        divergence = jsd(beta, tail=case["add_tail"])
    else:  # its KL without a tail sums over the support only
        divergence = lambda *given: generalized_jsd(*given, beta=0.0, remainder="ignore")  # noqa: E731
    teacher_BTV, logp_BTV = TEACHER_BTV.log_softmax(-1), student().log_softmax(-1)
    loss_BT = per_token(logp_BTV, teacher_BTV, top(teacher_BTV, case.get("topk")), divergence)
    assert_close(aggregate(loss_BT, MASK_BT, AGGREGATIONS[case["avg"]]).detach(), torch.tensor(case["loss"]))


@pytest.mark.parametrize("case", DISTILLATION["trl"], ids=case_id)
def test_trl_s_self_distillation_is_reproduced_per_token(case: dict[str, Any]) -> None:
    logp_BTV, teacher_BTV = student().log_softmax(-1).detach(), TEACHER_BTV.log_softmax(-1)
    if case["mode"] == "sampled_token":
        loss_BT = per_token(logp_BTV, teacher_BTV, SAMPLED_BT1, sampled_token)
    else:
        ids_BTk = top(logp_BTV, case.get("topk"))
        loss_BT = per_token(logp_BTV, teacher_BTV, ids_BTk, jsd(case["alpha"], tail=case.get("add_tail", False)))
    assert_close(loss_BT, tensor(case["per_token"]))


@pytest.mark.parametrize("row", range(3))
def test_hdpo_s_jsd_is_its_formula(row: int) -> None:
    student_NV, teacher_NV = (tensor(HDPO[f"{who}_logits"])[row : row + 1].log_softmax(-1) for who in WHO)
    expected = HDPO["rows"][row]
    top_N4 = teacher_NV.topk(HDPO["k"])
    assert top_N4.indices[0].tolist() == expected["topk_index"]
    divergence = topk_jsd(student_NV, top_N4.indices, top_N4.values)
    assert float(divergence) == pytest.approx(expected["jsd_topk_tail"], rel=1e-5)
    printed = topk_jsd(student_NV, top_N4.indices, top_N4.values, rest_factor=1.0)
    assert float(printed - divergence) == pytest.approx(0.5 * expected["student_rest_mass"] * 0.69314718, rel=1e-5)
    every_NV = torch.arange(student_NV.shape[1])[None]
    full = generalized_jsd(student_NV, every_NV, teacher_NV, beta=0.5)
    assert float(full) == pytest.approx(expected["jsd_full_vocab"], rel=1e-5)


def test_every_published_case_is_there() -> None:
    counts = {name: len(DISTILLATION[name]) for name in ("sdpo", "opsd", "rlsd_repo", "trl")}
    assert counts == {"sdpo": 15, "opsd": 10, "rlsd_repo": 10, "trl": 10}
    assert sum("grad_student_logits" in case for case in DISTILLATION["sdpo"] + DISTILLATION["opsd"]) == 13
