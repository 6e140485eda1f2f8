"""The divergences against plain loops over their equations, their identities, and edge cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.divergence import generalized_jsd, importance_weight, sampled_token, topk_jsd
from cepo.algo.losses import Totals, aggregate

SEEDS = range(4)
TOKENS, VOCABULARY = 9, 11


def random_case(seed: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a student's log-softmax [N, V], distinct ids [N, k], and the teacher's log-probs of these ids [N, k]."""
    random = torch.Generator().manual_seed(seed)
    student_NV, teacher_NV = (torch.randn(TOKENS, VOCABULARY, generator=random) * 2 for _ in range(2))
    ids_Nk = torch.rand(TOKENS, VOCABULARY, generator=random).argsort(-1)[:, :k]
    return student_NV.log_softmax(-1), ids_Nk, teacher_NV.log_softmax(-1).gather(-1, ids_Nk)


def loop_closed(logps: Sequence[float], remainder: str) -> list[float]:
    probs = [math.exp(logp) for logp in logps]
    if remainder == "tail":
        return [*probs, max(1.0 - math.fsum(probs), 1e-7)]
    return [prob / math.fsum(probs) for prob in probs] if remainder == "renormalize" else probs


def loop_kl(p: Sequence[float], q: Sequence[float]) -> float:
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def loop_jsd(student: Sequence[float], teacher: Sequence[float], beta: float) -> float:
    if beta in (0.0, 1.0):
        return loop_kl(student, teacher) if beta else loop_kl(teacher, student)
    mixture = [(1 - beta) * s + beta * t for s, t in zip(student, teacher, strict=True)]
    return beta * loop_kl(teacher, mixture) + (1 - beta) * loop_kl(student, mixture)


@pytest.mark.parametrize("remainder", ["tail", "renormalize", "ignore"])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("k", [1, 4, VOCABULARY])
@pytest.mark.parametrize("seed", SEEDS)
def test_generalized_jsd_is_its_equation(seed: int, k: int, beta: float, remainder: Any) -> None:
    logp_NV, ids_Nk, teacher_Nk = random_case(seed, k)
    divergence_N = generalized_jsd(logp_NV, ids_Nk, teacher_Nk, beta=beta, remainder=remainder)
    student_Nk = logp_NV.double().gather(-1, ids_Nk)
    expected = [
        loop_jsd(loop_closed(s, remainder), loop_closed(t, remainder), beta)
        for s, t in zip(student_Nk.tolist(), teacher_Nk.double().tolist(), strict=True)
    ]
    torch.testing.assert_close(divergence_N, torch.tensor(expected), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("k", [1, 4, VOCABULARY])
@pytest.mark.parametrize("seed", SEEDS)
def test_topk_jsd_is_its_equation(seed: int, k: int) -> None:
    logp_NV, ids_Nk, teacher_Nk = random_case(seed, k)
    expected = []
    for s, t in zip(logp_NV.gather(-1, ids_Nk).tolist(), teacher_Nk.tolist(), strict=True):
        student, teacher = [math.exp(logp) for logp in s], loop_closed(t, "renormalize")
        rest = 1 - math.fsum(student)
        expected.append(loop_jsd(student, teacher, 0.5) + 0.5 * rest * math.log(2))
    divergence_N = topk_jsd(logp_NV, ids_Nk, teacher_Nk)
    torch.testing.assert_close(divergence_N, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert (divergence_N >= 0).all()
    assert (divergence_N <= math.log(2) + 1e-6).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_half_way_it_is_symmetric_and_within_ln_2(seed: int) -> None:
    logp_NV, ids_NV, teacher_NV = random_case(seed, VOCABULARY)
    divergence_N = generalized_jsd(logp_NV, ids_NV, teacher_NV, beta=0.5)
    swapped = generalized_jsd(teacher_NV, ids_NV.argsort(-1), logp_NV, beta=0.5)
    torch.testing.assert_close(divergence_N, swapped)
    assert (divergence_N >= 0).all()
    assert (divergence_N <= math.log(2)).all()


@pytest.mark.parametrize("remainder", ["renormalize", "ignore"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_top_k_of_the_whole_vocabulary_with_its_tail_is_the_full_divergence(beta: float, remainder: Any) -> None:
    given = random_case(0, VOCABULARY)
    tail = generalized_jsd(*given, beta=beta, remainder="tail")
    torch.testing.assert_close(tail, generalized_jsd(*given, beta=beta, remainder=remainder), rtol=1e-5, atol=2e-6)


def test_small_tails_count() -> None:
    student_NV, teacher_NV = (torch.tensor([[1 - tail, tail]]).log() for tail in (1e-3, 1e-5))
    divergence_N = generalized_jsd(student_NV, torch.zeros(1, 1, dtype=torch.long), teacher_NV[:, :1], beta=1.0)
    assert float(divergence_N) == pytest.approx(loop_kl([1 - 1e-3, 1e-3], [1 - 1e-5, 1e-5]), rel=1e-2)


@pytest.mark.parametrize(("end", "near"), [(0.0, 1e-4), (1.0, 1.0 - 1e-4)])
def test_the_ends_are_the_divergences_and_not_the_limits(end: float, near: float) -> None:
    given = random_case(1, VOCABULARY)
    assert (generalized_jsd(*given, beta=end) > 100 * generalized_jsd(*given, beta=near)).all()


@pytest.mark.parametrize("remainder", ["tail", "renormalize"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_equal_distributions_are_at_distance_0_with_no_gradient(beta: float, remainder: Any) -> None:
    logp_NV, ids_Nk, _ = random_case(2, 4)
    logits_NV = logp_NV.clone().requires_grad_()
    student_NV = logits_NV.log_softmax(-1)
    loss_N = generalized_jsd(student_NV, ids_Nk, logp_NV.gather(-1, ids_Nk), beta=beta, remainder=remainder)
    loss_N.sum().backward()
    torch.testing.assert_close(loss_N.detach(), torch.zeros(TOKENS), rtol=0, atol=1e-6)
    torch.testing.assert_close(logits_NV.grad, torch.zeros_like(logp_NV), rtol=0, atol=1e-6)


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "kl": lambda *given: generalized_jsd(*given, beta=0.0),
    "reverse kl": lambda *given: generalized_jsd(*given, beta=1.0),
    "jsd": lambda *given: generalized_jsd(*given, beta=0.5),
    "hdpo": topk_jsd,
    "sampled token": lambda logp, ids, teacher: sampled_token(logp, ids[:, :1], teacher[:, :1]),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_flows_through_the_student_alone_and_chunks_add_up(form: str) -> None:
    logp_NV, ids_Nk, teacher_Nk = random_case(3, 4)
    student_NV, teacher_Nk = logp_NV.clone().requires_grad_(), teacher_Nk.requires_grad_()
    FORMS[form](student_NV, ids_Nk, teacher_Nk).sum().backward()
    assert teacher_Nk.grad is None
    whole = student_NV.grad.clone()
    student_NV.grad = None
    for rows in (slice(0, 2), slice(2, 2), slice(2, TOKENS)):
        FORMS[form](student_NV[rows], ids_Nk[rows], teacher_Nk[rows]).sum().backward()
    torch.testing.assert_close(student_NV.grad, whole)


@pytest.mark.parametrize("form", FORMS)
def test_teacher_log_prob_of_minus_infinity_is_finite(form: str) -> None:
    logp_NV, ids_Nk, teacher_Nk = random_case(4, 4)
    teacher_Nk[0, 0], teacher_Nk[1, :] = -math.inf, -math.inf
    student_NV = logp_NV.clone().requires_grad_()
    loss_N = FORMS[form](student_NV, ids_Nk, teacher_Nk)
    loss_N.sum().backward()
    assert loss_N.isfinite().all()
    assert student_NV.grad.isfinite().all()


def test_the_leaky_forms_depend_on_teacher_probabilities_off_the_sampled_token() -> None:
    logp_NV, ids_Nk, teacher_Nk = random_case(5, 4)
    other_Nk = torch.cat([teacher_Nk[:, :1], teacher_Nk[:, 1:].flip(-1)], dim=-1)
    for form, divergence in FORMS.items():
        gradients = []
        for teacher in (teacher_Nk, other_Nk):
            student_NV = logp_NV.clone().requires_grad_()
            divergence(student_NV, ids_Nk, teacher).sum().backward()
            gradients.append(student_NV.grad)
        assert torch.equal(*gradients) == (form == "sampled token"), form


def test_a_sampled_token_s_gradient_is_the_detached_difference_within_20() -> None:
    logp_N = torch.tensor([-1.0, -1.0, -1.0, -1.0])
    student_NV = torch.stack([logp_N, logp_N], dim=-1).requires_grad_()
    teacher_N1 = torch.tensor([[-0.25], [-3.0], [-math.inf], [math.nan]])
    sampled_token(student_NV, torch.zeros(4, 1, dtype=torch.long), teacher_N1).sum().backward()
    assert student_NV.grad.tolist() == [[-0.75, 0.0], [2.0, 0.0], [20.0, 0.0], [0.0, 0.0]]


def test_importance_weights_are_capped_and_carry_no_gradient() -> None:
    logp_N = torch.tensor([-1.0, -1.0, -1.0, -60.0], requires_grad=True)
    weight_N = importance_weight(logp_N, torch.tensor([-1.0, -0.5, -3.0, -1.0]), cap=2.0)
    assert weight_N.tolist() == pytest.approx([1.0, math.exp(-0.5), 2.0, math.exp(-20)])
    assert not weight_N.requires_grad


@pytest.mark.parametrize("form", FORMS)
def test_no_correct_peer_or_no_kept_sample_is_a_loss_of_0_with_a_graph(form: str) -> None:
    logp_NV, ids_Nk, teacher_Nk = random_case(6, 4)
    student_NV = logp_NV.clone().requires_grad_()
    mask_BT = torch.zeros(3, 3)
    loss = aggregate(FORMS[form](student_NV, ids_Nk, teacher_Nk).view(3, 3), mask_BT, "token-mean", Totals.of(mask_BT))
    loss.backward()
    assert loss == 0
    assert torch.equal(student_NV.grad, torch.zeros_like(logp_NV))


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_a_beta_outside_the_unit_interval_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be within"):
        generalized_jsd(*random_case(0, 4), beta=beta)


def test_an_unknown_remainder_is_refused() -> None:
    unknown: Any = "drop"
    with pytest.raises(ValueError, match="unknown remainder 'drop'"):
        generalized_jsd(*random_case(0, 4), beta=0.5, remainder=unknown)
