"""The bounds of the reweighting for any evidence, its special cases, and its independence of unsampled tokens.

Shapes: B sequences, T response tokens (padded), V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from cepo.algo.base import Algorithm
from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.algo.core import credit, reweight
from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.rlsd import Rlsd
from cepo.algo.variants import Grpo
from tests.parity.support import (
    Scored,
    both,
    make_batch,
    random_sample,
)

METHODS = (Grpo(), Rlsd(), Cepo())
REPEATABLE = settings(max_examples=200, deadline=None, derandomize=True, database=None)

advantage = st.one_of(st.sampled_from([0.0, -0.0]), st.floats(2**-10, 5, width=32), st.floats(-5, -(2**-10), width=32))
evidence = st.one_of(st.floats(-200, 0, width=32), st.sampled_from([-math.inf, math.inf, math.nan]))
tokens = st.lists(st.tuples(advantage, evidence, evidence), min_size=1, max_size=20)
share = st.floats(0, 1)
width = st.floats(0.01, 0.99)


def columns(rows: list[tuple[float, float, float]]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the advantages and the log-probs under the two contexts, each [1, T]."""
    adv_BT, numerator_BT, denominator_BT = torch.tensor(rows, dtype=torch.float32).T[:, None]
    return adv_BT, numerator_BT, denominator_BT


def bits(value: Tensor) -> Tensor:
    """Returns the bits of a float32 tensor as integers, in which 0 and -0 differ."""
    return value.contiguous().view(torch.int32)


@REPEATABLE
@given(tokens, share, width)
def test_credit_never_changes_the_sign_of_an_advantage(
    rows: list[tuple[float, float, float]], lam: float, eps_w: float
) -> None:
    adv_BT, numerator_BT, denominator_BT = columns(rows)
    credited_BT = reweight(adv_BT, numerator_BT, denominator_BT, lam, eps_w)
    assert torch.equal(torch.sign(credited_BT), torch.sign(adv_BT))


@REPEATABLE
@given(tokens, share, width)
def test_the_multiplier_stays_within_lam_eps_of_one(
    rows: list[tuple[float, float, float]], lam: float, eps_w: float
) -> None:
    adv_BT, numerator_BT, denominator_BT = columns(rows)
    credited_BT = reweight(adv_BT, numerator_BT, denominator_BT, lam, eps_w)
    multiplier = (credited_BT / adv_BT)[adv_BT != 0]
    assert torch.all((multiplier - 1).abs() <= lam * eps_w + 1e-6)


@pytest.mark.parametrize(("sign", "delta", "multiplier"), [(1, 9, 1.4), (1, -9, 0.6), (-1, 9, 0.6), (-1, -9, 1.4)])
def test_both_ends_of_the_multiplier_are_reached(sign: float, delta: float, multiplier: float) -> None:
    credited = reweight(torch.tensor([[2.0 * sign]]), torch.tensor([[delta - 10.0]]), torch.tensor([[-10.0]]), 0.5, 0.8)
    torch.testing.assert_close(credited, torch.tensor([[2.0 * sign * multiplier]]))


@REPEATABLE
@given(tokens, share, width)
def test_every_part_of_the_credit_is_finite(rows: list[tuple[float, float, float]], lam: float, eps_w: float) -> None:
    parts = credit(*columns(rows), lam, eps_w)
    for part_BT in (parts.delta_BT, parts.weight_BT, parts.weight_clipped_BT, parts.adv_BT):
        assert part_BT.isfinite().all()


@REPEATABLE
@given(tokens, width)
def test_lam_zero_returns_the_advantages_bit_for_bit(rows: list[tuple[float, float, float]], eps_w: float) -> None:
    adv_BT, numerator_BT, denominator_BT = columns(rows)
    assert torch.equal(bits(reweight(adv_BT, numerator_BT, denominator_BT, 0.0, eps_w)), bits(adv_BT))


@REPEATABLE
@given(st.lists(st.tuples(advantage, st.floats(-9, 0, width=32), st.floats(-9, 0, width=32)), min_size=1))
def test_swapping_the_two_evidences_inverts_the_weight(rows: list[tuple[float, float, float]]) -> None:
    adv_BT, numerator_BT, denominator_BT = columns(rows)
    weight_BT = credit(adv_BT, numerator_BT, denominator_BT, 1.0, 0.5).weight_BT
    swapped_BT = credit(adv_BT, denominator_BT, numerator_BT, 1.0, 0.5).weight_BT
    torch.testing.assert_close(weight_BT * swapped_BT, torch.ones_like(weight_BT), rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", [Rlsd, Cepo])
def test_the_methods_are_grpo_bit_for_bit_once_lam_is_zero(method: type[Rlsd] | type[Cepo]) -> None:
    batch = random_sample(0).batch
    grpo_BT = Grpo().advantages(batch, 0).adv_BT
    assert torch.equal(bits(method(decay_steps=7).advantages(batch, 7).adv_BT), bits(grpo_BT))
    assert torch.equal(bits(method(lam=0).advantages(batch, 0).adv_BT), bits(grpo_BT))
    assert not torch.equal(method(decay_steps=7).advantages(batch, 6).adv_BT, grpo_BT)


@pytest.mark.parametrize("method", [Rlsd, Cepo])
def test_a_batch_without_evidence_is_grpo(method: type[Rlsd] | type[Cepo]) -> None:
    batch = random_sample(0).batch
    bare = make_batch(batch.mask_BT, batch.reward_B, batch.group_B)
    assert torch.equal(bits(method().advantages(bare, 0).adv_BT), bits(Grpo().advantages(batch, 0).adv_BT))


def test_cepo_with_the_plain_evidence_as_the_rejected_one_is_rlsd() -> None:
    batch = random_sample(1).batch
    options: dict[str, Any] = {"lam": 0.6, "eps_w": 0.3, "decay_steps": 9}
    cepo_BT = Cepo(**options).advantages(batch, 2).adv_BT
    assert torch.equal(cepo_BT, Rlsd(**options).advantages(batch, 2).adv_BT)
    assert not torch.allclose(cepo_BT, Grpo().advantages(batch, 2).adv_BT)


@pytest.mark.parametrize("lam", [0.5, 0.3, 1.0])
def test_cepo_with_the_answer_evidence_as_the_rejected_one_is_grpo(lam: float) -> None:
    sample = random_sample(1).batch
    same = (both(sample)[0], both(sample)[0])
    batch = make_batch(sample.mask_BT, sample.reward_B, sample.group_B, evidence=same)
    cepo_BT = Cepo(lam=lam).advantages(batch, 0).adv_BT
    torch.testing.assert_close(cepo_BT, Grpo().advantages(batch, 0).adv_BT, rtol=1e-6, atol=0)


def test_a_sequence_that_lacks_one_of_its_evidences_is_not_weighed() -> None:
    evidence = (torch.zeros(2, 3), torch.full((2, 3), -2.0))  # the first sequence has no evidence, only zeros
    mask_BT, reward_B, group_B = torch.ones(2, 3), torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long)
    batch = make_batch(mask_BT, reward_B, group_B, evidence=evidence, measured_B=torch.tensor([False, True]))
    cepo_BT, grpo_BT = Cepo().advantages(batch, 0).adv_BT, Grpo().advantages(batch, 0).adv_BT
    assert torch.equal(cepo_BT[0], grpo_BT[0])
    torch.testing.assert_close(cepo_BT[1], grpo_BT[1] * 0.75)
    assert Cepo().advantages(batch, 0).metrics["credit/tokens"] == 3


@pytest.mark.parametrize("algorithm", METHODS)
def test_advantages_are_zero_on_padding_and_in_groups_of_equal_rewards(algorithm: Algorithm) -> None:
    batch = random_sample(2).batch
    adv_BT = algorithm.advantages(batch, 0).adv_BT
    assert not adv_BT[batch.mask_BT == 0].any()
    assert not adv_BT[batch.group_B == 11].any()
    assert adv_BT[batch.group_B == 3].any()


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
def test_equal_rewards_give_zero_whatever_the_evidence_says(value: float) -> None:
    evidence = (torch.full((4, 3), value), torch.zeros(4, 3))
    group_B = torch.zeros(4, dtype=torch.long)
    batch = make_batch(torch.ones(4, 3), torch.full((4,), 0.1), group_B, evidence=evidence)
    logp_BT = torch.full((4, 3), -1.0, requires_grad=True)
    adv_BT = Cepo().advantages(batch, 0).adv_BT
    assert torch.equal(adv_BT, torch.zeros(4, 3))
    Cepo().loss(Scored(logp_BT), logp_BT.detach() + 0.1, batch, adv_BT, batch).loss.backward()
    assert torch.equal(logp_BT.grad, torch.zeros(4, 3))


def test_the_evidences_get_no_gradient() -> None:
    sample = random_sample(3)
    batch = sample.batch
    for logp_BT in both(batch):
        logp_BT.requires_grad_()
    adv_BT = Cepo().advantages(batch, 0).adv_BT
    assert not adv_BT.requires_grad
    logp_BT = sample.logp_BT.clone().requires_grad_()
    Cepo().loss(Scored(logp_BT), sample.logp_old_BT, batch, adv_BT, batch).loss.backward()
    assert logp_BT.grad.any()
    assert [logp_BT.grad for logp_BT in both(batch)] == [None, None]


def student_gradient(student_BTV: Tensor, sampled_BT: Tensor, teachers: tuple[Tensor, ...]) -> Tensor:
    """Returns the gradient of the policy loss with respect to the student's logits, [B, T, V]."""

    def at_sample(logp_BTV: Tensor) -> Tensor:
        return logp_BTV.gather(-1, sampled_BT[..., None])[..., 0]

    student_BTV = student_BTV.clone().requires_grad_()
    reward_B, group_B = torch.tensor([1.0, 0.0, 1.0, 0.5]), torch.zeros(4, dtype=torch.long)
    evidence = tuple(at_sample(teacher_BTV) for teacher_BTV in teachers)
    batch = make_batch(torch.ones(4, 3), reward_B, group_B, evidence=evidence)
    algorithm = Cepo() if evidence else Grpo()
    logp_BT = at_sample(student_BTV.log_softmax(-1))
    adv_BT = algorithm.advantages(batch, 0).adv_BT
    algorithm.loss(Scored(logp_BT), logp_BT.detach(), batch, adv_BT, batch).loss.backward()
    return student_BTV.grad


def move_mass_off_the_sample(logp_BTV: Tensor, sampled_BT: Tensor) -> Tensor:
    """Returns the distribution with the probabilities of the tokens that were not sampled permuted."""
    moved_BTV = logp_BTV.clone()
    for row, position in torch.cartesian_prod(torch.arange(4), torch.arange(3)).tolist():
        others = [v for v in range(5) if v != sampled_BT[row, position]]
        moved_BTV[row, position, others] = logp_BTV[row, position, others[1:] + others[:1]]
    return moved_BTV


def test_teacher_probabilities_off_the_sample_cannot_matter() -> None:
    random = torch.Generator().manual_seed(4)
    student_BTV, *logits = [torch.randn(4, 3, 5, generator=random) for _ in range(3)]
    sampled_BT = torch.randint(5, (4, 3), generator=random)
    teachers = tuple(logits_BTV.log_softmax(-1) for logits_BTV in logits)
    moved = tuple(move_mass_off_the_sample(logp_BTV, sampled_BT) for logp_BTV in teachers)
    grad_BTV = student_gradient(student_BTV, sampled_BT, teachers)
    assert torch.equal(student_gradient(student_BTV, sampled_BT, moved), grad_BTV)

    # A method that matches distributions depends on this change: its gradient is p_student - p_teacher.
    assert all(((a.exp() - b.exp()).abs().sum(-1) > 0.01).all() for a, b in zip(teachers, moved, strict=True))
    # The gradient depends on the evidence at the sampled token.
    louder = (teachers[0] + torch.linspace(-1, 1, 3)[:, None], teachers[1])
    assert not torch.allclose(student_gradient(student_BTV, sampled_BT, louder), grad_BTV)


def test_the_gradient_is_that_of_grpo_scaled_at_each_token() -> None:
    random = torch.Generator().manual_seed(5)
    student_BTV, *logits = [torch.randn(4, 3, 5, generator=random) for _ in range(3)]
    sampled_BT = torch.randint(5, (4, 3), generator=random)
    teachers = tuple(logits_BTV.log_softmax(-1) for logits_BTV in logits)
    cepo_BTV, grpo_BTV = (
        student_gradient(student_BTV, sampled_BT, teachers),
        student_gradient(student_BTV, sampled_BT, ()),
    )
    scale_BTV = (cepo_BTV / grpo_BTV)[[0, 1, 2]]  # the fourth reward is near the mean
    torch.testing.assert_close(scale_BTV, scale_BTV[..., :1].expand_as(scale_BTV), rtol=1e-4, atol=0)
    assert torch.all((scale_BTV - 1).abs() <= 0.25 + 1e-5)
    assert scale_BTV.std() > 0.05


@pytest.mark.parametrize("lam", [-0.01, 1.01, math.nan, math.inf])
def test_lam_out_of_range_is_refused_with_its_value(lam: float) -> None:
    with pytest.raises(ValueError, match=rf"lam must be within \[0, 1\], got {lam}"):
        reweight(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1), lam, 0.5)


@pytest.mark.parametrize("eps_w", [0.0, 1.0, -0.2, 1.7, math.nan])
def test_eps_out_of_range_is_refused_with_its_value(eps_w: float) -> None:
    with pytest.raises(ValueError, match=rf"eps_w must be within \(0, 1\), got {eps_w}"):
        reweight(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1), 0.5, eps_w)


@REPEATABLE
@given(st.lists(st.tuples(advantage, *[st.floats(-9, 0, width=32)] * 3), min_size=1))
def test_cepo_is_sharper_than_rlsd_just_where_the_wrong_answer_pulls_away_from_the_student(
    rows: list[tuple[float, float, float, float]],
) -> None:
    """Proposition 1: for A > 0, w_CEPO > w_RLSD iff P_- < P_S; for A < 0 iff P_- > P_S. Before the clip."""
    adv_BT, answer_BT, rejected_BT, student_BT = torch.tensor(rows, dtype=torch.float32).T[:, None]
    cepo_BT = credit(adv_BT, answer_BT, rejected_BT, 1.0, 0.5).delta_BT * torch.sign(adv_BT)
    rlsd_BT = credit(adv_BT, answer_BT, student_BT, 1.0, 0.5).delta_BT * torch.sign(adv_BT)
    pulls_BT = torch.where(adv_BT > 0, rejected_BT < student_BT, rejected_BT > student_BT) & (adv_BT != 0)
    apart_BT = (rejected_BT - student_BT).abs() > 1e-5  # float32 cannot resolve smaller differences
    assert torch.equal((cepo_BT > rlsd_BT)[apart_BT], pulls_BT[apart_BT])


@pytest.mark.parametrize("sign", ["token", "sequence"])
def test_the_direction_is_a_tokens_own_or_its_sequences(sign: str) -> None:
    adv_BT, delta_BT = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.1, 0.1]])
    sign_BT = torch.sign(adv_BT.sum(dim=1, keepdim=True)) if sign == "sequence" else None
    weight_BT = credit(adv_BT, delta_BT, torch.zeros(1, 2), 1.0, 0.5, sign_BT=sign_BT).weight_BT
    assert weight_BT[0].tolist() == pytest.approx([math.exp(0.1), math.exp(0.1 if sign == "sequence" else -0.1)])


@REPEATABLE
@given(tokens, width)
def test_tokens_that_are_not_weighed_keep_their_advantage_bit_for_bit(
    rows: list[tuple[float, float, float]], eps_w: float
) -> None:
    adv_BT, numerator_BT, denominator_BT = columns(rows)
    where_BT = torch.arange(adv_BT.shape[1])[None] % 2 == 0
    parts = credit(adv_BT, numerator_BT, denominator_BT, 1.0, eps_w, where_BT)
    assert torch.equal(bits(parts.adv_BT)[~where_BT], bits(adv_BT)[~where_BT])
    everywhere_BT = reweight(adv_BT, numerator_BT, denominator_BT, 1.0, eps_w)
    assert torch.equal(bits(parts.adv_BT)[where_BT], bits(everywhere_BT)[where_BT])


def with_wrong_hints(algorithm: Cepo, denominators: list[Tensor], applicable: list[list[bool]]) -> TrainBatch:
    """Returns three sequences of one group with rewards 1, 0, 0 and a numerator of 0."""
    mask_BT = torch.ones(3, 2)
    batch = make_batch(mask_BT, torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3, dtype=torch.long))
    evidence = [EvidenceTensors(torch.zeros(3, 2), torch.ones(3, dtype=torch.bool))]
    evidence += [
        EvidenceTensors(logp, torch.tensor(flags)) for logp, flags in zip(denominators, applicable, strict=True)
    ]
    return replace(batch, evidence=dict(zip(algorithm.asks, evidence, strict=True)))


def test_several_wrong_hints_are_the_mean_of_those_that_apply() -> None:
    algorithm = Cepo(wrong_hints=2, lam=1.0, eps_w=0.9)
    one, two = torch.full((3, 2), -0.2), torch.full((3, 2), -0.4)
    batch = with_wrong_hints(algorithm, [one, two], [[True, True, False], [True, False, False]])
    ratio_BT = algorithm.advantages(batch, 0).adv_BT / Grpo().advantages(batch, 0).adv_BT
    expected = [math.exp(0.3), math.exp(-0.2), 1.0]  # the mean of both hints, only the first hint, no hint
    assert ratio_BT[:, 0].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("measured", [[True, True, False], [False] * 3])
def test_a_group_without_a_negative_can_be_skipped(measured: list[bool]) -> None:
    algorithm = Cepo(no_negative="skip_group")
    batch = with_wrong_hints(algorithm, [torch.full((3, 2), -0.2)], [measured])
    adv_BT = algorithm.advantages(batch, 0).adv_BT
    assert bool(adv_BT.any()) is any(measured)
    if any(measured):  # the third lacks only its own hint
        assert torch.equal(adv_BT[2], Grpo().advantages(batch, 0).adv_BT[2])


def test_without_modulate_all_wrong_a_group_of_wrong_answers_keeps_its_advantages() -> None:
    sample = random_sample(1).batch
    wrong = replace(sample, accuracy_B=torch.zeros(13))
    grpo_BT = Grpo().advantages(sample, 0).adv_BT
    assert torch.equal(bits(Cepo(modulate_all_wrong=False).advantages(wrong, 0).adv_BT), bits(grpo_BT))
    assert not torch.equal(Cepo().advantages(wrong, 0).adv_BT, grpo_BT)
    some = Cepo(modulate_all_wrong=False).advantages(sample, 0).adv_BT
    assert torch.equal(some[sample.group_B == 3], Cepo().advantages(sample, 0).adv_BT[sample.group_B == 3])
