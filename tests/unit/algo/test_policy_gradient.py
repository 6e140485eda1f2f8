"""Policy gradients use their estimator and surrogate unchanged, and refuse options that have no effect.

Shapes: B sequences, T response tokens (padded), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cepo.algo import advantages as estimators, surrogates
from cepo.algo.base import Algorithm
from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.algo.core import group_advantage
from cepo.algo.losses import Totals, aggregate, clipped_terms
from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.policy_gradient import REFERENCE, PolicyGradient
from cepo.algo.variants import ALGORITHMS, Cispo, DrGrpo, Grpo, Gspo, ReinforcePlusPlus, Rloo, Sapo
from cepo.messages.groups import TeachWhen
from tests.parity.support import Distributed, Scored, make_batch, random_sample

POLICY_GRADIENTS = [method for method in ALGORITHMS.values() if issubclass(method, PolicyGradient)]


def masked(batch: TrainBatch, adv_B: Tensor) -> Tensor:
    return adv_B[:, None] * batch.mask_BT


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (Grpo(), lambda b: masked(b, group_advantage(b.reward_B, b.group_B))),
        (Grpo(std_correction=0), lambda b: masked(b, group_advantage(b.reward_B, b.group_B, correction=0))),
        (
            Grpo(advantage_scale="batch-std", advantage_eps=1e-4),
            lambda b: masked(b, group_advantage(b.reward_B, b.group_B, eps=1e-4, scale="batch-std")),
        ),
        (DrGrpo(), lambda b: masked(b, group_advantage(b.reward_B, b.group_B, scale="none"))),
        (Rloo(), lambda b: masked(b, estimators.rloo_advantage(b.reward_B, b.group_B))),
        (Grpo(estimator="pass@k"), lambda b: masked(b, estimators.pass_at_k_advantage(b.reward_B, b.group_B))),
        (
            ReinforcePlusPlus(kl_coef=0, gamma=0.9),
            lambda b: estimators.reinforce_plus_plus_advantage(
                estimators.terminal_reward(b.reward_B, b.mask_BT), b.mask_BT, gamma=0.9
            ),
        ),
        (
            Grpo(estimator="reinforce++-baseline"),
            lambda b: estimators.reinforce_plus_plus_baseline_advantage(b.reward_B, b.group_B, b.mask_BT),
        ),
    ],
    ids=lambda value: value.estimator if isinstance(value, PolicyGradient) else "",
)
@pytest.mark.parametrize("seed", range(3))
def test_the_advantage_is_the_estimators(algorithm: Algorithm, expected: Any, seed: int) -> None:
    batch = random_sample(seed).batch
    adv_BT = algorithm.advantages(batch, 0).adv_BT
    torch.testing.assert_close(adv_BT, expected(batch), rtol=1e-6, atol=0)
    assert adv_BT.any()
    assert not adv_BT[batch.mask_BT == 0].any()


@pytest.mark.parametrize(
    ("algorithm", "terms"),
    [
        (Grpo(), lambda p, o, a, m: clipped_terms(p, o, a, clip_low=0.2, clip_high=0.28)),
        (Gspo(), lambda p, o, a, m: surrogates.gspo_terms(p, o, a, m, clip_low=3e-4, clip_high=4e-4)),
        (
            Cepo(surrogate="gspo-token", dual_clip=3.0),
            lambda p, o, a, m: surrogates.gspo_token_terms(p, o, a, m, clip_low=0.2, clip_high=0.28, dual_clip=3.0),
        ),
        (
            Cispo(ratio_min=0.5, ratio_max=2.0),
            lambda p, o, a, m: surrogates.cispo_terms(p, o, a, ratio_min=0.5, ratio_max=2.0),
        ),
        (Sapo(tau_neg=2.0), lambda p, o, a, m: surrogates.sapo_terms(p, o, a, tau_pos=1.0, tau_neg=2.0)),
    ],
    ids=["clip", "gspo", "gspo-token", "cispo", "sapo"],
)
@pytest.mark.parametrize("split", [[13], [5, 8], [1] * 13])
def test_the_loss_is_the_surrogates_whatever_the_micro_batches(
    algorithm: PolicyGradient, terms: Any, split: list[int]
) -> None:
    sample = random_sample(3)
    batch, old_BT = sample.batch, sample.logp_old_BT
    adv_BT, totals = algorithm.advantages(batch, 0).adv_BT, Totals.of(batch.mask_BT, batch.max_tokens)
    plain_BT, logp_BT = (sample.logp_BT.clone().requires_grad_() for _ in range(2))
    expected = aggregate(terms(plain_BT, old_BT, adv_BT, batch.mask_BT), batch.mask_BT, algorithm.aggregation, totals)
    expected.backward()
    loss = 0.0
    for rows in torch.arange(13).split(split):
        micro = batch.rows(rows.tolist())
        cut = slice(micro.mask_BT.shape[1])
        part = algorithm.loss(Scored(logp_BT[rows, cut]), old_BT[rows, cut], micro, adv_BT[rows, cut], batch)
        part.loss.backward()
        loss += float(part.loss.detach())
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-6)
    torch.testing.assert_close(logp_BT.grad, plain_BT.grad, rtol=1e-4, atol=1e-7)
    assert logp_BT.grad.any()


def with_reference(batch: TrainBatch, seed: int = 0) -> tuple[TrainBatch, Tensor]:
    random = torch.Generator().manual_seed(seed)
    reference_BT = -torch.rand(batch.mask_BT.shape, generator=random) * batch.mask_BT
    measured = EvidenceTensors(reference_BT, torch.ones(batch.size, dtype=torch.bool))
    return replace(batch, evidence={**batch.evidence, REFERENCE: measured}), reference_BT


@pytest.mark.parametrize("form", ["kl", "abs", "mse", "low_var_kl"])
def test_a_divergence_in_the_loss_is_added_token_by_token(form: Any) -> None:
    sample = random_sample(4)
    batch, reference_BT = with_reference(sample.batch)
    algorithm = Grpo(kl_coef=0.3, kl_form=form)
    assert (algorithm.asks, algorithm.teach_when) == ((REFERENCE,), TeachWhen.ALWAYS)
    adv_BT, student = algorithm.advantages(batch, 0).adv_BT, Scored(sample.logp_BT)
    with_it = algorithm.loss(student, sample.logp_old_BT, batch, adv_BT, batch)
    without = Grpo().loss(student, sample.logp_old_BT, batch, adv_BT, batch)
    kls = []
    for row, column in batch.mask_BT.nonzero().tolist():
        d = float(sample.logp_BT[row, column] - reference_BT[row, column])
        exponent = min(max(-d, -20.0), 20.0)
        k3 = min(max(math.exp(exponent) - exponent - 1, -10.0), 10.0)
        kls.append({"kl": d, "abs": abs(d), "mse": d * d / 2, "low_var_kl": k3}[form])
    assert float(with_it.loss - without.loss) == pytest.approx(0.3 * sum(kls) / len(kls), rel=1e-3)
    assert with_it.token_sums["kl/reference"] == pytest.approx(sum(kls), rel=1e-4)
    assert algorithm.has_gradient_B(batch, torch.zeros_like(adv_BT)).tolist() == batch.mask_BT.any(dim=1).tolist()


@pytest.mark.parametrize("aggregation", ["seq-mean-token-sum", "seq-mean-token-mean"])
def test_a_divergence_may_have_another_aggregation_than_the_loss(aggregation: Any) -> None:
    """VinePPO and SPO add kl_coef times the mean over responses of the sum over tokens to a mean over tokens."""
    sample = random_sample(4)
    batch, reference_BT = with_reference(sample.batch)
    algorithm = Grpo(kl_coef=0.3, kl_form="abs", kl_aggregation=aggregation)
    adv_BT = algorithm.advantages(batch, 0).adv_BT
    options = (sample.logp_old_BT, batch, adv_BT, batch)
    with_it, without = (method.loss(Scored(sample.logp_BT), *options).loss for method in (algorithm, Grpo()))
    totals = []
    for row in range(batch.size):
        length = len(batch.response_ids[row])
        kls = [abs(float(sample.logp_BT[row, t] - reference_BT[row, t])) for t in range(length)]
        totals += [sum(kls) / (length if aggregation.endswith("mean") else 1)] if length else []
    assert float(with_it - without) == pytest.approx(0.3 * sum(totals) / len(totals), rel=1e-4)
    with pytest.raises(ValueError, match='kl_aggregation has no effect with kl_in="reward"'):
        Grpo(kl_coef=0.3, kl_in="reward", kl_aggregation=aggregation)


def test_a_divergence_in_the_reward_moves_every_groups_rewards() -> None:
    batch, reference_BT = with_reference(random_sample(5).batch)
    algorithm = Grpo(kl_coef=0.5, kl_form="kl", kl_in="reward")
    taken_B = 0.5 * ((batch.rollout_logp_BT - reference_BT) * batch.mask_BT).sum(dim=1)
    expected = Grpo().advantages(replace(batch, reward_B=batch.reward_B - taken_B), 0).adv_BT
    torch.testing.assert_close(algorithm.advantages(batch, 0).adv_BT, expected)
    equal = batch.group_B == 11
    assert algorithm.advantages(batch, 0).adv_BT[equal].any()
    assert not Grpo().advantages(batch, 0).adv_BT[equal].any()


def test_the_entropy_bonus_is_the_mean_entropy_of_the_distributions() -> None:
    random = torch.Generator().manual_seed(0)
    logits_BTV = torch.randn(3, 4, 7, generator=random).requires_grad_()
    mask_BT = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    batch = make_batch(mask_BT, torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3, dtype=torch.long))
    student = Distributed(logits_BTV, torch.zeros(3, 4, dtype=torch.long), mask_BT)
    adv_BT = torch.zeros_like(mask_BT)
    output = Grpo(entropy_coef=0.1).loss(student, student.logp_BT.detach(), batch, adv_BT, batch)
    entropies = [-(p := logits_BTV[i, t].softmax(0)) @ p.log() for i, t in mask_BT.nonzero().tolist()]
    expected_loss = -0.1 * torch.stack(entropies).sum() / 4
    torch.testing.assert_close(output.loss, expected_loss)
    assert output.token_sums["entropy/mean"] == pytest.approx(float(sum(entropies)), rel=1e-5)
    gradient, expected_gradient = (
        torch.autograd.grad(x, logits_BTV, retain_graph=True)[0] for x in (output.loss, expected_loss)
    )
    torch.testing.assert_close(gradient, expected_gradient)


def test_truncated_responses_leave_the_loss_and_its_denominators_and_stay_in_the_group() -> None:
    sample = random_sample(6)
    cut_B = torch.arange(13) % 4 == 1
    batch = replace(sample.batch, truncated_B=cut_B)
    algorithm = Grpo(mask_truncated=True)
    adv_BT = algorithm.advantages(batch, 0).adv_BT
    assert not adv_BT[cut_B].any()
    assert torch.equal(adv_BT[~cut_B], Grpo().advantages(batch, 0).adv_BT[~cut_B])
    kept = batch.rows((~cut_B).nonzero().flatten().tolist())
    cut = slice(kept.mask_BT.shape[1])
    output = algorithm.loss(Scored(sample.logp_BT), sample.logp_old_BT, batch, adv_BT, batch)
    alone = Grpo().loss(
        Scored(sample.logp_BT[~cut_B, cut]), sample.logp_old_BT[~cut_B, cut], kept, adv_BT[~cut_B, cut], kept
    )
    torch.testing.assert_close(output.loss, alone.loss)


@pytest.mark.parametrize("method", POLICY_GRADIENTS)
def test_demonstrations_are_never_part_of_a_policy_gradient(method: Callable[..., PolicyGradient]) -> None:
    sample, algorithm = random_sample(7), method()
    shown_B = torch.arange(13) == 3
    reward_B = torch.where(shown_B, math.nan, sample.batch.reward_B)
    shown = replace(sample.batch, demonstration_B=shown_B, reward_B=reward_B, value_BT=torch.zeros_like(sample.logp_BT))
    batch, reference_BT = with_reference(shown)
    measured = EvidenceTensors(reference_BT, torch.ones(13, dtype=torch.bool))
    batch = replace(batch, evidence=dict.fromkeys(algorithm.asks, measured) | dict(batch.evidence))
    logp_BT, adv_BT = sample.logp_BT.clone().requires_grad_(), algorithm.advantages(batch, 0).adv_BT
    algorithm.loss(Scored(logp_BT), sample.logp_old_BT, batch, adv_BT, batch).loss.backward()
    assert not logp_BT.grad[3].any()
    assert logp_BT.grad.any()
    assert not algorithm.has_gradient_B(batch, adv_BT)[3]


def test_groups_of_equal_rewards_skip_the_teacher_where_their_advantage_is_zero() -> None:
    skipping = [Cepo(), Cepo(estimator="rloo"), Cepo(advantage_scale="batch-std"), Grpo()]
    measured = [Cepo(kl_coef=0.1), Cepo(estimator="reinforce++"), Cepo(estimator="reinforce++-baseline")]
    assert {algorithm.teach_when for algorithm in skipping} == {TeachWhen.REWARD_SPREAD}
    assert {algorithm.teach_when for algorithm in measured} == {TeachWhen.ALWAYS}


def test_the_engines_log_probs_may_stand_for_the_old_ones() -> None:
    batch = random_sample(0).batch
    assert Grpo().logp_old_BT(batch) is None
    assert Grpo(old_logp="rollout").logp_old_BT(batch) is batch.rollout_logp_BT


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        (Grpo, {"ratio_max": 3.0}, "ratio_max has no effect with estimator='grpo', surrogate='clip'"),
        (Cispo, {"clip_low": 0.1}, "clip_low has no effect with estimator='grpo', surrogate='cispo'"),
        (Rloo, {"advantage_scale": "none"}, "advantage_scale has no effect with estimator='rloo'"),
        (Cepo, {"gamma": 0.9}, "gamma has no effect"),
        (Grpo, {"kl_form": "abs"}, "kl_form has no effect while kl_coef is 0"),
        (Grpo, {"old_logp": "rollout", "importance_cap": 2.0}, "importance_cap has no effect with old_logp='rollout'"),
        (Cispo, {"ratio_min": 6.0}, "ratio_min=6.0 must be below ratio_max=5.0"),
    ],
)
def test_an_option_that_cannot_matter_is_refused_with_the_reason(
    method: type[Algorithm], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError) as refusal:
        method(**options)
    assert reason in str(refusal.value)


@pytest.mark.parametrize("method", ALGORITHMS.values())
def test_every_method_survives_its_own_dump(method: type[Algorithm]) -> None:
    algorithm = method.model_validate({"name": method.model_fields["name"].default})
    assert method.model_validate(algorithm.model_dump()) == algorithm
