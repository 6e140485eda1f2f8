"""CLIPO: the bonus and the head's loss against plain loops and published numbers, and batches without anchors.

Shapes: B sequences, H hidden size, D projection size.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.algo.contrastive import contrastive_loss
from cepo.algo.methods.clipo import METRICS, POOLED, Clipo, ContrastiveHead
from cepo.algo.methods.policy_gradient import REFERENCE
from cepo.algo.variants import Grpo
from cepo.messages.groups import ContextName, TeachWhen, Want, Weights
from tests.helpers.contexts import TableContext
from tests.parity.support import golden, loop_group_advantage, make_batch, random_sample, tensor
from tests.parity.test_contrastive import loop_loss

CLIPO = golden("clipo")
INPUTS = CLIPO["inputs"]
LEVELS: tuple[Any, ...] = ("group", "cross", "batch")
DRAWLESS = ("supcon_out", "supcon_in", "soft_nn")
SIMILARITIES = {"cosine_distance": "cosine", "-cosine_distance": "negative_cosine", "l2_distance": "l2"}
PUBLISHED = [
    case
    for case in CLIPO["cases"]
    if case["masked_label"] == 0 and case["skip_trivial"] and case["loss_type"] != "infonce_loss"
]


def measured(batch: TrainBatch, hidden_BH: Tensor, applicable_B: Tensor | None = None) -> TrainBatch:
    everywhere_B = torch.ones(batch.size, dtype=torch.bool)
    pooled = EvidenceTensors(
        batch.mask_BT * 0, everywhere_B if applicable_B is None else applicable_B, pooled_BD=hidden_BH
    )
    return replace(batch, evidence={POOLED: pooled, REFERENCE: EvidenceTensors(batch.mask_BT * 0, everywhere_B)})


def make_head(hidden_size: int = 6, seed: int = 0, **options: Any) -> ContrastiveHead:
    torch.manual_seed(0)
    clipo = Clipo(**{"temperature": 0.2, "head_size": 5, **options})
    return clipo.auxiliary_model(TableContext(torch.zeros(1, 1, hidden_size), [], seed=seed))


def random_batch(seed: int) -> TrainBatch:
    """Returns shuffled ragged groups with an empty response, a failed reward, a singleton and a group of one label."""
    hidden_BH = torch.randn(13, 6, generator=torch.Generator().manual_seed(seed))
    return measured(random_sample(seed).batch, hidden_BH)


def whole_batch(reward: list[float], group: list[int], *, hidden_BH: Tensor | None = None) -> TrainBatch:
    """Returns responses of three tokens with the given rewards and groups."""
    if hidden_BH is None:
        hidden_BH = torch.randn(len(reward), 6, generator=torch.Generator().manual_seed(1))
    return measured(make_batch(torch.ones(len(reward), 3), torch.tensor(reward), torch.tensor(group)), hidden_BH)


def bonus(head: ContrastiveHead, batch: TrainBatch, step: int = 0) -> Tensor:
    """Returns the bonus of each response, [B]; 0 where the reward is NaN."""
    return (head.prepare(batch, step).reward_B - batch.reward_B).nan_to_num()


def usable(batch: TrainBatch) -> list[int]:
    return [row for row in range(batch.size) if batch.mask_BT[row].any() and math.isfinite(float(batch.reward_B[row]))]


def loop_rewards(head: ContrastiveHead, batch: TrainBatch, contrast: str, level: str) -> list[float]:
    """Returns reward + max(-0.2 loss c, -0.5) for each sequence that has a token and a verdict."""
    (weight_DH,) = head.model.parameters()
    rows = usable(batch)
    embedding = []
    for row in rows:
        z = [math.fsum(w * h for w, h in zip(weights, batch.evidence[POOLED].pooled_BD[row].tolist(), strict=True))
             for weights in weight_DH.tolist()]  # fmt: skip
        norm = math.sqrt(math.fsum(x * x for x in z))
        embedding.append([x / norm for x in z])
    correct = [float(batch.accuracy_B[row] >= 0.5) for row in rows]
    group = [int(batch.group_B[row]) for row in rows]
    rewards = batch.reward_B.tolist()
    for at, row in enumerate(rows):
        loss = loop_loss(embedding, correct, group, at, contrast, level, -1) or 0.0
        rewards[row] += max(-0.2 * loss * correct[at], -0.5)
    return rewards


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("contrast", DRAWLESS)
@pytest.mark.parametrize("seed", range(3))
def test_rewards_and_advantages_are_their_equations(seed: int, contrast: Any, level: Any) -> None:
    head, batch = make_head(contrast=contrast, level=level), random_batch(seed)
    rewards = loop_rewards(head, batch, contrast, level)
    prepared = head.prepare(batch, 0)
    torch.testing.assert_close(prepared.reward_B, torch.tensor(rewards), rtol=1e-4, atol=1e-5, equal_nan=True)
    adv_B = torch.tensor(loop_group_advantage(rewards, batch.group_B.tolist()))
    adv_BT = Clipo(contrast=contrast, level=level).advantages(prepared, 0).adv_BT
    torch.testing.assert_close(adv_BT, adv_B[:, None] * batch.mask_BT, rtol=1e-3, atol=1e-4)
    assert torch.equal(prepared.accuracy_B, batch.accuracy_B)


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda c: f"{c['level']}-{c['loss_type']}-{c['distance']}")
def test_the_method_reproduces_the_published_codes_bonus_and_loss(case: dict[str, Any]) -> None:
    head = make_head(
        temperature=INPUTS["temperature"],
        head_size=4,
        logarithms="released",
        contrast=case["loss_type"].replace("_loss", ""),
        level=case["level"].replace("_level", ""),
        similarity=SIMILARITIES[case["distance"]],
    )
    (weight,) = head.model.parameters()
    weight.data.copy_(tensor(INPUTS["head_weight"]))
    group = ["abcd".index(uid) for uid in INPUTS["uid"]]
    batch = whole_batch([float(c) for c in INPUTS["labels"]], group, hidden_BH=tensor(INPUTS["hidden_states"]))
    published_B = tensor(case["contrastive_rewards_lambda0.2"])
    torch.testing.assert_close(bonus(head, batch), published_B, rtol=1e-4, atol=1e-5)
    # The released logarithms depend on each vector's distance from itself, a square root of rounding errors.
    assert head.update(batch, 0)["clipo/head_loss"] == pytest.approx(case["loss"], rel=1e-3)


def test_published_cases_of_every_level_and_loss_are_there() -> None:
    assert {(case["level"], case["loss_type"]) for case in PUBLISHED} == {
        (f"{level}_level", f"supcon_loss_{name}" if name in ("in", "out") else "soft_nn_loss")
        for level in LEVELS
        for name in ("in", "out", "nn")
    }


def test_the_positive_of_infonce_is_drawn_with_the_runs_seed_and_the_step() -> None:
    batch = whole_batch([1.0] * 6 + [0.0] * 2, [0] * 8)
    first_B = bonus(make_head(bonus_minimum=-99.0), batch)
    assert torch.equal(bonus(make_head(bonus_minimum=-99.0), batch), first_B)
    assert not torch.equal(bonus(make_head(bonus_minimum=-99.0), batch, step=1), first_B)
    assert not torch.equal(bonus(make_head(bonus_minimum=-99.0, seed=1), batch), first_B)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("contrast", DRAWLESS)
def test_the_order_of_the_sequences_does_not_matter(contrast: Any, level: Any) -> None:
    batch, order = random_batch(1), torch.randperm(13, generator=torch.Generator().manual_seed(2))
    head = make_head(contrast=contrast, level=level)
    shuffled = batch.rows(order.tolist())
    torch.testing.assert_close(bonus(head, shuffled), bonus(head, batch)[order], rtol=1e-4, atol=1e-6)
    report = head.update(batch, 0)
    assert make_head(contrast=contrast, level=level).update(shuffled, 0) == pytest.approx(report, rel=1e-3, abs=1e-5)


def test_the_reward_uses_the_head_from_before_its_update_and_the_head_takes_one_step_of_adamw() -> None:
    head, batch = make_head(contrast="supcon_out"), whole_batch([1.0, 1.0, 0.0, 1.0, 0.0], [0] * 5)
    twin = make_head(contrast="supcon_out").model
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=0.01)
    given = twin(batch.evidence[POOLED].pooled_BD), batch.accuracy_B, batch.group_B
    loss = contrastive_loss(*given, contrast="supcon_out", temperature=0.2).loss
    loss.backward()
    optimizer.step()
    before_B = bonus(head, batch)
    report = head.update(head.prepare(batch, 0), 0)
    assert report["clipo/head_loss"] == pytest.approx(float(loss.detach()))
    assert report["clipo/bonus_mean"] == pytest.approx(float(before_B[batch.accuracy_B > 0].mean()), abs=1e-6)
    for parameter, expected in zip(head.model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, expected)
    assert not torch.equal(bonus(head, batch), before_B)


def test_a_fixed_head_stays_as_it_was_drawn() -> None:
    head, batch = make_head(fixed_head=True), whole_batch([1.0, 1.0, 0.0], [0] * 3)
    before_B = bonus(head, batch)
    assert head.update(batch, 0)["clipo/head_loss"] > 0
    assert torch.equal(bonus(head, batch), before_B)


def test_the_head_learns_to_tell_correct_from_wrong() -> None:
    direction_H = torch.randn(6, generator=torch.Generator().manual_seed(3))
    label_B = torch.tensor([1.0, 1, 1, 0, 0, 0] * 4)
    noise_BH = torch.randn(24, 6, generator=torch.Generator().manual_seed(4))
    hidden_BH = noise_BH + 0.5 * (2 * label_B - 1)[:, None] * direction_H
    batch = whole_batch(label_B.tolist(), [i // 6 for i in range(24)], hidden_BH=hidden_BH)
    head = make_head(head_lr=1e-2, contrast="supcon_out")
    reports = [head.update(batch, step) for step in range(40)]
    assert reports[-1]["clipo/head_loss"] < 0.7 * reports[0]["clipo/head_loss"]
    pair = "clipo/similarity_embedding_correct_"
    gaps = [report[pair + "correct"] - report[pair + "wrong"] for report in reports]
    assert gaps[-1] > gaps[0] + 0.3


DEGENERATE = {
    "all rollouts of a group correct": [1.0, 1.0, 1.0],
    "all wrong": [0.0, 0.0, 0.0],
    "only one correct rollout in a mixed group": [1.0, 0.0, 0.0],
    "reward NaN or verifier time-out": [math.nan, math.nan, math.nan],
}


@pytest.mark.parametrize("contrast", ["infonce", *DRAWLESS])
@pytest.mark.parametrize("name", DEGENERATE)
def test_without_anchors_the_bonus_is_0_and_the_head_takes_no_step(name: str, contrast: Any) -> None:
    head = make_head(contrast=contrast)
    head.update(whole_batch([1.0, 1.0, 0.0], [0] * 3), 0)  # leaves momentum, which must not move the head
    state = {key: value.clone() for key, value in head.model.state_dict().items()}
    momentum = head.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    batch = whole_batch(DEGENERATE[name], [0] * 3)
    assert not bonus(head, batch).any()
    report = head.update(batch, 1)
    assert (report["clipo/head_loss"], report["clipo/anchor_fraction"], report["clipo/bonus_mean"]) == (0.0, 0.0, 0.0)
    assert all(math.isfinite(value) for value in report.values())
    assert all(torch.equal(value, state[key]) for key, value in head.model.state_dict().items())
    assert torch.equal(head.optimizer.state_dict()["state"][0]["exp_avg"], momentum)


def test_a_group_all_correct_has_anchors_when_the_other_prompts_are_negatives() -> None:
    batch = whole_batch([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1])
    assert not bonus(make_head(level="group"), batch).any()
    for level in ("cross", "batch"):
        assert bonus(make_head(level=level), batch)[:2].all()


def test_a_step_without_pooled_states_leaves_rewards_and_head_unchanged() -> None:
    head, batch = make_head(kl_coef=0), replace(whole_batch([1.0, 1.0], [0, 0]), evidence={})
    assert head.prepare(batch, 0) is batch
    assert head.update(batch, 0) == dict.fromkeys(METRICS, 0.0)


@pytest.mark.parametrize("case", ["empty", "failed", "demonstration", "not measured"])
def test_a_response_that_cannot_be_compared_is_a_peer_of_no_other(case: str) -> None:
    batch = whole_batch([1.0, 1.0, 0.0, 1.0], [0] * 4)
    left_out_B = torch.tensor([False, False, False, True])
    match case:
        case "empty":
            changed = replace(batch, mask_BT=batch.mask_BT * ~left_out_B[:, None])
        case "failed":
            changed = replace(batch, reward_B=torch.where(left_out_B, math.nan, batch.reward_B))
        case "demonstration":
            changed = replace(batch, demonstration_B=left_out_B)
        case _:
            changed = measured(batch, batch.evidence[POOLED].pooled_BD, ~left_out_B)
    expected_B = bonus(make_head(), batch.rows([0, 1, 2]))
    assert torch.equal(bonus(make_head(), changed), torch.cat([expected_B, torch.zeros(1)]))
    assert expected_B[:2].any()


def test_the_diagnostics_are_plain_statistics() -> None:
    batch = whole_batch([1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0], [0] * 4 + [1] * 3)
    head = make_head(contrast="soft_nn", bonus_minimum=-0.1)
    given_B, hidden_BH = bonus(head, batch), batch.evidence[POOLED].pooled_BD
    embedding_BD = head.model(hidden_BH).detach()
    report = head.update(batch, 0)
    for what, vector_BD in (("embedding", embedding_BD), ("hidden", hidden_BH)):
        pairs: dict[str, list[float]] = {"correct_correct": [], "correct_wrong": [], "wrong_wrong": []}
        for i in range(7):
            for j in range(i):
                if batch.group_B[i] == batch.group_B[j]:
                    label = {2: "correct_correct", 1: "correct_wrong", 0: "wrong_wrong"}
                    cosine = torch.cosine_similarity(vector_BD[i], vector_BD[j], dim=0)
                    pairs[label[int(batch.accuracy_B[i] + batch.accuracy_B[j])]].append(float(cosine))
        for which, cosines in pairs.items():
            assert report[f"clipo/similarity_{what}_{which}"] == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    correct_B = batch.accuracy_B > 0
    every = contrastive_loss(
        embedding_BD, batch.accuracy_B, batch.group_B, contrast="soft_nn", temperature=0.2, anchors="all"
    )
    assert report["clipo/anchor_fraction"] == 1.0
    assert report["clipo/loss_correct_mean"] == pytest.approx(float(every.loss_B[correct_B].mean()), rel=1e-5)
    assert report["clipo/loss_wrong_mean"] == pytest.approx(float(every.loss_B[[2, 3]].mean()), rel=1e-5)
    assert report["clipo/loss_wrong_std"] == pytest.approx(float(every.loss_B[[2, 3]].std(correction=0)), rel=1e-4)
    assert report["clipo/bonus_std"] == pytest.approx(float(given_B[correct_B].std(correction=0)), abs=1e-6)
    at_minimum = [abs(b + 0.1) < 1e-6 for b in given_B[correct_B].tolist()]
    assert report["clipo/bonus_at_minimum_fraction"] == pytest.approx(sum(at_minimum) / 4)
    assert sum(at_minimum) > 0


def test_it_asks_the_sampling_policy_for_pooled_states_under_the_plain_prompt() -> None:
    assert Clipo().asks == (REFERENCE, POOLED)
    assert (POOLED.context, POOLED.want, POOLED.weights) == (ContextName.PLAIN, Want.HIDDEN, Weights.POLICY)
    assert Clipo(kl_coef=0).asks == (POOLED,)
    assert [Clipo(head_warmup=2).learns_at(step) for step in range(4)] == [False, False, True, True]
    assert all(Grpo().learns_at(step) for step in range(3))


def test_groups_of_equal_rewards_are_measured_where_they_can_matter() -> None:
    assert Clipo().teach_when is TeachWhen.ALWAYS  # because of the KL divergence
    teach_when = {level: Clipo(kl_coef=0, level=level).teach_when for level in LEVELS}
    assert teach_when == {"group": TeachWhen.REWARD_SPREAD, "cross": TeachWhen.ALWAYS, "batch": TeachWhen.ALWAYS}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"fixed_head": True, "head_lr": 0.1}, "head_lr has no effect with fixed_head=true"),
        ({"fixed_head": True, "head_warmup": 3}, "head_warmup has no effect with fixed_head=true"),
        ({"gamma": 0.9}, "gamma has no effect with estimator='grpo'"),
        ({"contrast": "triplet"}, "Input should be 'infonce'"),
        ({"bonus_minimum": 0.5}, "less than or equal to 0"),
    ],
)
def test_an_option_that_cannot_matter_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Clipo(**options)
