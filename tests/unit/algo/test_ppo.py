"""PPO: advantages, returns and the value loss against plain loops, and batches without a return.

Shapes: B sequences, T response tokens (padded), D hidden units.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.algo.methods.policy_gradient import REFERENCE
from cepo.algo.methods.ppo import Critic, Ppo, explained_variance
from cepo.messages.groups import TeachWhen
from tests.helpers.contexts import TableContext
from tests.parity.support import golden, make_batch, random_sample, tensor

GOLDEN = golden("advantages")
MASK_BT = tensor(GOLDEN["inputs"]["response_mask"])
GROUP_B = torch.tensor(["pqr".index(uid) for uid in GOLDEN["inputs"]["uid"]])
METRICS = {
    f"critic/{key}" for key in ("loss", "clip_fraction", "grad_norm", "explained_variance", "value_mean", "return_mean")
}


def with_prompts(batch: TrainBatch) -> TrainBatch:
    return replace(batch, prompt_ids=[(row,) for row in range(batch.size)])


def make_case(seed: int, **options: Any) -> tuple[Critic, TrainBatch, Ppo]:
    """Returns a critic with nonzero weights, a ragged batch that it was not trained on, and the method."""
    random = torch.Generator().manual_seed(seed)
    sample = random_sample(seed)
    reference = EvidenceTensors(sample.logp_old_BT, torch.ones(13, dtype=torch.bool))
    batch = with_prompts(replace(sample.batch, evidence={REFERENCE: reference}))
    ppo = Ppo(**{"critic_lr": 1e-2, **{k: v for k, v in options.items() if k in Ppo.model_fields}})
    of_context = {k: v for k, v in options.items() if k not in Ppo.model_fields}
    critic = ppo.auxiliary_model(
        TableContext(torch.randn(*batch.mask_BT.shape, 5, generator=random), batch.prompt_ids, **of_context)
    )
    with torch.no_grad():
        head: Any = critic.model.get_submodule("head")
        head.weight.copy_(torch.randn(1, 5, generator=random) * 0.3)
        head.bias.fill_(0.2)
    return critic, batch, ppo


def loop_gae(
    rewards: list[float], values: list[float], valid: list[float], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """Returns A_t = sum over k of (gamma lam)^k delta_{t+k} of one sequence, and the returns A_t + V_t."""
    tokens = [t for t, here in enumerate(valid) if here]
    deltas = []
    for at, t in enumerate(tokens):
        later = values[tokens[at + 1]] if at + 1 < len(tokens) else 0.0
        deltas.append(rewards[t] + gamma * later - values[t])
    advantages, returns = [0.0] * len(valid), [0.0] * len(valid)
    for at, t in enumerate(tokens):
        advantages[t] = math.fsum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[at:]))
        returns[t] = advantages[t] + values[t]
    return advantages, returns


def expected(batch: TrainBatch, ppo: Ppo) -> tuple[Tensor, Tensor]:
    """Returns whitened advantages and returns by loops, of the reward on the last token minus the KL on every token."""
    reference_BT = batch.evidence[REFERENCE].logp_BT
    rows = []
    for row, reward in enumerate(batch.reward_B.tolist()):
        valid = batch.mask_BT[row].tolist() if math.isfinite(reward) else [0.0] * batch.mask_BT.shape[1]
        divergence = (batch.rollout_logp_BT[row] - reference_BT[row]).tolist()
        last = max((t for t, here in enumerate(valid) if here), default=-1)
        rewards = [-ppo.kl_coef * d + (reward if t == last else 0.0) for t, d in enumerate(divergence)]
        rows.append(loop_gae(rewards, batch.value_BT[row].tolist(), valid, ppo.gamma, ppo.gae_lambda))
    adv_BT, return_BT = (torch.tensor(rows_of) for rows_of in zip(*rows, strict=True))
    valid_BT = batch.mask_BT.bool() & batch.reward_B.isfinite()[:, None]
    advantages = adv_BT[valid_BT].tolist()
    mean = math.fsum(advantages) / len(advantages)
    variance = math.fsum((a - mean) ** 2 for a in advantages) / (len(advantages) - 1)
    return torch.where(valid_BT, (adv_BT - mean) / math.sqrt(variance + 1e-8), 0.0), return_BT


@pytest.mark.parametrize("options", [{}, {"gae_lambda": 0.9}, {"gamma": 0.95, "gae_lambda": 0.5, "kl_coef": 0.1}])
@pytest.mark.parametrize("seed", range(4))
def test_advantages_and_returns_are_the_discounted_sums_of_the_critics_errors(
    seed: int, options: dict[str, Any]
) -> None:
    critic, batch, ppo = make_case(seed, **options)
    batch = critic.prepare(batch, 0)
    adv_BT, return_BT = expected(batch, ppo)
    torch.testing.assert_close(ppo.advantages(batch, 0).adv_BT, adv_BT, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ppo.advantages_and_returns(batch)[1], return_BT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "gamma", "lam"), [("verl_gae_g1_l0.95", 1.0, 0.95), ("verl_gae_g0.99_l1", 0.99, 1.0)])
def test_the_method_reproduces_verls_numbers(name: str, gamma: float, lam: float) -> None:
    batch = make_batch(MASK_BT, tensor(GOLDEN["inputs"]["token_level_rewards"]["outcome"]).sum(dim=1), GROUP_B)
    batch = replace(batch, value_BT=tensor(GOLDEN["inputs"]["values"]))
    adv_BT, return_BT = Ppo(kl_coef=0, gamma=gamma, gae_lambda=lam).advantages_and_returns(batch)
    published = GOLDEN["outputs"]["outcome"][name]
    torch.testing.assert_close(adv_BT, tensor(published["advantages"]) * MASK_BT, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(return_BT, tensor(published["returns"]) * MASK_BT, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_value_loss_is_its_equation(seed: int) -> None:
    critic, batch, ppo = make_case(seed, value_clip=0.05)
    batch = critic.prepare(batch, 0)
    target_BT = expected(batch, ppo)[1]
    old_BT = batch.value_BT + 0.1 * torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(seed))
    shifted = replace(batch, value_BT=old_BT * batch.mask_BT)
    valid = (batch.mask_BT.bool() & batch.reward_B.isfinite()[:, None]).nonzero().tolist()
    return_BT = ppo.advantages_and_returns(shifted)[1]
    losses, clipped = [], 0
    for row, t in valid:
        value, old, target = (float(x[row, t]) for x in (batch.value_BT, shifted.value_BT, return_BT))
        free, bound = (value - target) ** 2, (min(max(value, old - 0.05), old + 0.05) - target) ** 2
        losses.append(max(free, bound) / 2)
        clipped += bound > free
    report = critic.update(shifted, 0)
    assert report["critic/loss"] == pytest.approx(math.fsum(losses) / len(losses), rel=1e-4)
    assert report["critic/clip_fraction"] == pytest.approx(clipped / len(losses))
    assert 0 < clipped < len(losses)
    assert not torch.equal(target_BT, torch.zeros_like(target_BT))


def gradients(critic: Critic) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in critic.model.parameters()]


@pytest.mark.parametrize("seed", range(3))
def test_the_update_depends_on_neither_micro_batches_nor_the_order_of_the_sequences(seed: int) -> None:
    whole, batch, _ = make_case(seed)
    report = whole.update(whole.prepare(batch, 0), 0)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(seed)).tolist()
    for rows_per_pass, given in ((1, batch), (4, batch), (3, batch.rows(order))):
        other, _, _ = make_case(seed, rows_per_pass=rows_per_pass)
        prepared = other.prepare(given, 0)
        assert other.update(prepared, 0) == pytest.approx(report, rel=1e-4, abs=1e-6)
        for one, two in zip(gradients(other), gradients(whole), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_values_are_those_from_before_the_update_for_every_mini_batch() -> None:
    critic, batch, ppo = make_case(2, updates=4)
    before = critic.prepare(batch, 0)
    report = critic.update(before, 0)
    returns_BT = ppo.advantages_and_returns(before)[1]
    valued_BT = ppo.valued_BT(batch).bool()
    variance = explained_variance(before.value_BT[valued_BT], returns_BT[valued_BT])
    assert report["critic/explained_variance"] == pytest.approx(variance)
    assert not torch.equal(critic.prepare(batch, 0).value_BT, before.value_BT)


def test_every_mini_batch_is_a_mean_over_its_own_tokens() -> None:
    critic, batch, ppo = make_case(1, updates=4, critic_lr=1e-12)
    prepared = critic.prepare(batch, 0)
    error_BT = (prepared.value_BT - ppo.advantages_and_returns(prepared)[1]).square() / 2
    valued_BT = ppo.valued_BT(batch).bool()
    means = [error_BT[batch.group_B == group][valued_BT[batch.group_B == group]].mean() for group in (3, 5, 7, 11)]
    assert critic.update(prepared, 0)["critic/loss"] == pytest.approx(float(sum(means)) / 4, rel=1e-4)


def alone(reward: list[float], lengths: list[int], **changes: Any) -> tuple[Critic, TrainBatch, Ppo]:
    """Returns a critic, a group with these rewards and lengths, and the method without a KL penalty."""
    mask_BT = (torch.arange(4) < torch.tensor(lengths)[:, None]).float()
    batch = make_batch(mask_BT, torch.tensor(reward), torch.zeros(len(reward), dtype=torch.long))
    batch = with_prompts(replace(batch, **changes))
    ppo = Ppo(kl_coef=0, critic_lr=1e-2)
    hidden_BTD = torch.randn(len(reward), 4, 5, generator=torch.Generator().manual_seed(0))
    return ppo.auxiliary_model(TableContext(hidden_BTD, batch.prompt_ids)), batch, ppo


@pytest.mark.parametrize("reward", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], ids=["all correct", "all wrong"])
def test_rollouts_that_are_all_correct_or_all_wrong_still_teach_the_critic(reward: list[float]) -> None:
    critic, batch, ppo = alone(reward, [4, 2, 3])
    before = critic.prepare(batch, 0)
    assert not before.value_BT.any()
    assert not ppo.advantages(before, 0).adv_BT.any()  # all returns agree, and all values do
    report = critic.update(before, 0)
    assert report["critic/return_mean"] == reward[0]
    assert report["critic/loss"] == pytest.approx(reward[0] / 2)
    assert report["critic/explained_variance"] == 0.0
    assert bool(critic.prepare(batch, 0).value_BT.any()) == (reward[0] > 0)


def test_an_empty_response_has_no_value_no_return_and_no_place_in_the_denominators() -> None:
    critic, batch, ppo = alone([1.0, 0.0, 0.5], [4, 0, 3])
    before = critic.prepare(batch, 0)
    adv_BT, return_BT = ppo.advantages_and_returns(before)
    assert not adv_BT[1].any()
    assert not return_BT[1].any()
    without, rest, _ = alone([1.0, 0.5], [4, 3])
    assert critic.update(before, 0)["critic/loss"] == without.update(without.prepare(rest, 0), 0)["critic/loss"]


@pytest.mark.parametrize(
    ("reward", "lengths", "changes"),
    [
        ([1.0, 0.0], [0, 0], {}),
        ([math.nan, math.nan], [4, 2], {}),
        ([math.nan, math.nan], [4, 2], {"demonstration_B": torch.tensor([True, True])}),
    ],
    ids=["all empty", "reward NaN or verifier time-out", "demonstrations"],
)
def test_without_a_return_neither_weights_nor_momentum_change(
    reward: list[float], lengths: list[int], changes: dict[str, Any]
) -> None:
    critic, batch, ppo = alone(reward, lengths, **changes)
    before = critic.prepare(batch, 0)
    assert not ppo.advantages(before, 0).adv_BT.any()
    assert critic.update(before, 0) == dict.fromkeys(METRICS, 0.0)
    assert critic.optimizer.state_dict()["state"] == {}


def test_a_reward_that_is_not_a_number_changes_nothing_for_the_others() -> None:
    critic, batch, ppo = alone([1.0, math.nan, 0.0], [4, 2, 3])
    without, rest, _ = alone([1.0, 0.0], [4, 3])
    adv_BT = ppo.advantages(critic.prepare(batch, 0), 0).adv_BT
    torch.testing.assert_close(adv_BT[[0, 2]], ppo.advantages(without.prepare(rest, 0), 0).adv_BT)
    assert not adv_BT[1].any()


def test_a_truncated_response_takes_its_reward_on_the_last_token() -> None:
    critic, batch, ppo = alone([0.5, 0.0], [4, 2], truncated_B=torch.tensor([True, False]))
    return_BT = ppo.advantages_and_returns(critic.prepare(batch, 0))[1]
    assert return_BT.tolist() == [[0.5] * 4, [0.0] * 4]


def test_explained_variance() -> None:
    returns_N = torch.tensor([1.0, 0.0, 2.0, 5.0])
    assert explained_variance(returns_N - 3.0, returns_N) == pytest.approx(1.0)
    assert explained_variance(torch.full((4,), 0.7), returns_N) == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(-returns_N, returns_N) == pytest.approx(-3.0)
    assert explained_variance(returns_N, torch.ones(4)) == 0.0
    assert explained_variance(torch.ones(0), torch.ones(0)) == 0.0


def test_it_asks_for_the_base_while_there_is_a_divergence_and_warms_its_critic_up() -> None:
    assert (Ppo().asks, Ppo().teach_when) == ((REFERENCE,), TeachWhen.ALWAYS)
    assert Ppo(kl_coef=0, kl_form="kl").asks == ()
    assert [Ppo(critic_warmup=2).learns_at(step) for step in range(4)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"estimator": "rloo"}, "Input should be 'gae'"),
        ({"advantage_scale": "none"}, "advantage_scale has no effect with estimator='gae'"),
        ({"value_clip": 0.0}, "greater than 0"),
        ({"gae_lambda": 1.5}, "less than or equal to 1"),
    ],
)
def test_an_option_that_cannot_matter_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Ppo(**options)
