"""The public interface of the methods: their options, their asks for the teacher, and their diagnostics."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import pstdev
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from cepo.algo.base import Algorithm
from cepo.algo.batch import TrainBatch
from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.rlsd import Rlsd
from cepo.algo.variants import ALGORITHMS, AnyAlgorithm, Grpo
from cepo.messages.groups import Ask, ContextName, Feedback, Pick, TeachWhen, Weights
from tests.parity.support import (
    both,
    make_batch,
    random_sample,
)

KEYS = {
    f"credit/{key}"
    for key in (
        "lambda",
        "tokens",
        "delta_mean",
        "delta_std",
        "delta_pos_fraction",
        "delta_neg_fraction",
        "delta_zero_fraction",
        "delta_pos_fraction_correct",
        "delta_pos_fraction_wrong",
        "delta_neg_fraction_correct",
        "delta_neg_fraction_wrong",
        "delta_mean_correct",
        "delta_mean_wrong",
        *(f"delta_{moment}_{sign}" for moment in ("mean", "std") for sign in ("raised", "lowered")),
        *(f"delta_p{percent}" for percent in ("05", "25", "50", "75", "95")),
        *(f"delta_histogram_{bin:02d}" for bin in range(12)),
        "wrong_direction_fraction",
        "wrong_direction_fraction_raised",
        "wrong_direction_fraction_lowered",
        "clip_fraction",
        "clip_low_fraction",
        "clip_high_fraction",
        "weight_mean",
        "weight_mean_unclipped",
        "multiplier_mean",
        "sequences_fraction",
        "advantage_before",
        "advantage_after",
        "nonfinite_tokens",
    )
}
SHARPER = {"credit/sharper_correct", "credit/sharper_wrong"}
"""Metric keys of the methods with a rejected context."""

ANSWER = Ask(context=ContextName.ANSWER)
PLAIN = Ask(context=ContextName.PLAIN, weights=Weights.POLICY)
REJECTED_OR_PLAIN = Ask(context=ContextName.REJECTED, otherwise=ContextName.PLAIN)


def test_grpo_asks_for_nothing() -> None:
    assert Grpo().asks == ()
    assert Grpo().asks_at(0) == ()


def test_rlsd_asks_for_the_answer_over_the_plain_context() -> None:
    assert Rlsd().asks == (ANSWER, PLAIN)


def test_cepo_asks_for_the_answer_over_the_rejected_context_and_falls_back_to_the_plain_one() -> None:
    assert Cepo().asks == (ANSWER, REJECTED_OR_PLAIN)


@pytest.mark.parametrize("no_negative", ["grpo", "skip_group"])
def test_cepo_can_do_without_a_rejected_answer_and_exclude_a_rollout_from_its_own_contrast(no_negative: Any) -> None:
    _, rejected = Cepo(no_negative=no_negative, exclude_self=True).asks
    assert rejected == Ask(context=ContextName.REJECTED, exclude_self=True)


def test_peers_are_never_shown_to_themselves_unless_it_is_said() -> None:
    peers: dict[str, Any] = {"positive": "peer_full", "negative": "peer_suffix", "feedback_tokens": 5, "pick": "random"}
    positive, negative = Cepo(**peers).asks
    assert (positive.feedback, positive.tokens, positive.exclude_self) == (Feedback.PEER_FULL, 0, True)
    assert (negative.feedback, negative.tokens, negative.exclude_self) == (Feedback.PEER_SUFFIX, 5, True)
    assert positive.otherwise is ContextName.ANSWER
    assert {ask.pick for ask in (positive, negative)} == {Pick.RANDOM}
    assert not any(ask.exclude_self for ask in Cepo(**peers, exclude_self=False).asks)
    assert not any(ask.exclude_self for ask in Cepo().asks)


def test_several_wrong_hints_are_asks_of_their_own_and_only_the_first_falls_back() -> None:
    _, *rejected = Cepo(wrong_hints=3).asks
    assert [ask.rank for ask in rejected] == [0, 1, 2]
    assert [ask.otherwise for ask in rejected] == [ContextName.PLAIN, None, None]


def test_rlsd_measures_the_plain_context_only_where_the_old_student_counts() -> None:
    assert Rlsd(student_logp="current", positive="solution").asks == (
        Ask(context=ContextName.ANSWER, feedback=Feedback.SOLUTION),
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"warmup_steps": 3}, 'warmup_steps is for schedule = "warmup_decay", not "linear"'),
        ({"schedule": "constant", "decay_steps": 3}, "decay_steps has no meaning"),
        ({"schedule": "constant", "offset": 1}, "offset has no meaning"),
        ({"positive": "peer_prefix"}, "feedback_tokens is missing"),
        ({"feedback_tokens": 9}, "feedback_tokens is the length of a peer's prefix or suffix"),
        ({"teacher": {"source": "sync"}}, 'teacher.sync_every is missing: source = "sync" needs it'),
        ({"teacher": {"source": "ema"}}, 'teacher.ema_rate is missing: source = "ema" needs it'),
        ({"teacher": {"sync_every": 5}}, 'teacher.sync_every is for source = "sync", not "actor"'),
        ({"teacher": {"source": "sync", "sync_every": 5, "ema_rate": 0.1}}, 'ema_rate is for source = "ema"'),
        ({"teacher": {"source": "trust_region"}}, 'teacher.actor_share is missing: source = "trust_region" needs it'),
        ({"teacher": {"actor_share": 0.05}}, 'teacher.actor_share is for source = "trust_region", not "actor"'),
        ({"teacher": {"source": "trust_region", "actor_share": 1.0}}, "Input should be less than 1"),
    ],
)
@pytest.mark.parametrize("method", [Rlsd, Cepo])
def test_a_meaningless_combination_is_refused_with_the_reason(
    method: type[Algorithm], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        method(**options)
    assert reason in str(refused.value)


def test_rlsd_has_no_peer_to_pick_unless_it_shows_one() -> None:
    with pytest.raises(ValidationError, match=r"pick chooses among peers and none is shown"):
        Rlsd(pick="random")
    assert Rlsd(pick="random", positive="peer_full").asks[0].pick is Pick.RANDOM


@pytest.mark.parametrize("method", [Rlsd, Cepo])
def test_nothing_is_asked_once_lam_is_zero(method: type[Rlsd] | type[Cepo]) -> None:
    algorithm = method(decay_steps=5)
    assert [len(algorithm.asks_at(step)) for step in range(8)] == [2, 2, 2, 2, 2, 0, 0, 0]
    assert algorithm.asks_at(4) == algorithm.asks
    assert method(lam=0).asks_at(0) == ()


@pytest.mark.parametrize("method", [Grpo, Rlsd, Cepo])
def test_groups_of_equal_rewards_skip_the_teacher(method: Callable[..., Algorithm]) -> None:
    assert method().teach_when is TeachWhen.REWARD_SPREAD


def test_defaults_are_those_of_the_papers() -> None:
    assert (Cepo().lam, Cepo().decay_steps, Cepo().eps_w, Cepo().no_negative) == (0.5, 25, 0.5, "rlsd")
    assert (Rlsd().lam, Rlsd().decay_steps, Rlsd().eps_w) == (0.5, 50, 0.2)
    assert (Grpo().clip_low, Grpo().clip_high, Grpo().advantage_scale) == (0.2, 0.28, "std")


@pytest.mark.parametrize("name", ["grpo", "rlsd", "cepo"])
def test_a_method_is_chosen_by_its_name_alone(name: str) -> None:
    chosen: Algorithm = TypeAdapter(AnyAlgorithm).validate_python({"name": name})
    assert type(chosen) is ALGORITHMS[name]
    assert chosen.name == name


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValidationError, match="'sft'"):
        TypeAdapter(AnyAlgorithm).validate_python({"name": "sft"})


@pytest.mark.parametrize("method", [Grpo, Rlsd, Cepo])
def test_an_unknown_option_is_refused_by_name(method: Callable[..., Algorithm]) -> None:
    with pytest.raises(ValidationError, match=r"(?s)lamda.*Extra inputs are not permitted"):
        method(lamda=0.5)


def test_an_option_of_another_method_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Grpo.model_validate({"eps_w": 0.5})
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Rlsd.model_validate({"exclude_self": True})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lam", 1.5),
        ("lam", -0.5),
        ("eps_w", 1.0),
        ("eps_w", 0.0),
        ("decay_steps", 0),
        ("clip_low", 1.0),
        ("clip_high", 0.0),
        ("dual_clip", 1.0),
        ("importance_cap", -1.0),
        ("advantage_eps", -1.0),
        ("aggregation", "mean"),
        ("advantage_scale", "group"),
        ("no_negative", "skip"),
        ("negative", "solution"),
        ("wrong_hints", 0),
        ("schedule", "cosine"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_value(option: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=rf"(?s){option}.*input_value={value!r}"):
        Cepo(**{option: value})


def test_a_method_cannot_be_changed_after_it_was_made() -> None:
    algorithm = Cepo()
    with pytest.raises(ValidationError, match="frozen"):
        algorithm.lam = 0.1


def hand_made() -> TrainBatch:
    """Returns four responses of one group with rewards 1, 1, 0, 0. The last response has no evidence.

    A is +a, +a, -a, -a with a = sqrt(3) / 2. The differences delta of the log-probs are (`.` is padding)

        +1.0  -0.1   0.0     correct, +
        +0.2     .     .     correct, +
        +2.0  -2.0  -0.3     wrong, -
    """
    delta_BT = torch.tensor([[1.0, -0.1, 0.0], [0.2, 0.0, 0.0], [2.0, -2.0, -0.3], [0.0, 0.0, 0.0]])
    denominator_BT = torch.full((4, 3), -3.0)
    return make_batch(
        torch.tensor([[1.0, 1, 1], [1, 0, 0], [1, 1, 1], [1, 1, 1]]),
        torch.tensor([1.0, 1.0, 0.0, 0.0]),
        torch.tensor([4, 4, 4, 4]),
        evidence=(denominator_BT + delta_BT, denominator_BT),
        measured_B=torch.tensor([True, True, True, False]),
    )


def test_diagnostics_of_a_batch_counted_by_hand() -> None:
    metrics = Cepo(lam=0.5, eps_w=0.5, decay_steps=10).advantages(hand_made(), 2).metrics
    deltas = [1.0, -0.1, 0.0, 0.2, 2.0, -2.0, -0.3]
    mean = sum(deltas) / 7
    weights = [1.5, math.exp(-0.1), 1.0, math.exp(0.2), 0.5, 1.5, math.exp(0.3)]
    expected = {
        "lambda": 0.4,
        "tokens": 7,
        "delta_mean": mean,
        "delta_std": math.sqrt(sum((delta - mean) ** 2 for delta in deltas) / 7),
        "delta_pos_fraction": 3 / 7,
        "delta_neg_fraction": 3 / 7,
        "delta_pos_fraction_correct": 2 / 4,
        "delta_pos_fraction_wrong": 1 / 3,
        "delta_neg_fraction_correct": 1 / 4,
        "delta_neg_fraction_wrong": 2 / 3,
        "delta_mean_correct": (1.0 - 0.1 + 0.0 + 0.2) / 4,
        "delta_mean_wrong": (2.0 - 2.0 - 0.3) / 3,
        "delta_zero_fraction": 1 / 7,
        "delta_mean_raised": (1.0 - 0.1 + 0.0 + 0.2) / 4,
        "delta_mean_lowered": (2.0 - 2.0 - 0.3) / 3,
        "delta_std_raised": pstdev([1.0, -0.1, 0.0, 0.2]),
        "delta_std_lowered": pstdev([2.0, -2.0, -0.3]),
        "delta_p05": -2.0 + 0.3 * 1.7,  # sorted: -2.0 -0.3 -0.1 0.0 0.2 1.0 2.0
        "delta_p25": -0.2,
        "delta_p50": 0.0,
        "delta_p75": 0.6,
        "delta_p95": 1.7,
        **dict.fromkeys([f"delta_histogram_{bin:02d}" for bin in range(12)], 0.0),
        "delta_histogram_03": 1 / 7,  # from -2 to -1
        "delta_histogram_05": 2 / 7,  # from -0.5 to 0
        "delta_histogram_06": 2 / 7,  # from 0 to 0.5
        "delta_histogram_08": 1 / 7,
        "delta_histogram_09": 1 / 7,
        "wrong_direction_fraction": 2 / 7,  # -0.1 on a correct response, 2.0 on a wrong one
        "wrong_direction_fraction_raised": 1 / 4,
        "wrong_direction_fraction_lowered": 1 / 3,
        "clip_fraction": 3 / 7,
        "clip_low_fraction": 1 / 7,
        "clip_high_fraction": 2 / 7,
        "sequences_fraction": 3 / 4,
        "advantage_before": math.sqrt(3) / 2,
        "advantage_after": math.sqrt(3) / 2 * sum(0.6 + 0.4 * weight for weight in weights) / 7,
        "sharper_correct": 1.0,  # log-prob 0 under the sampling policy, -3 under the rejected context
        "sharper_wrong": 0.0,
        "weight_mean": sum(weights) / 7,
        "weight_mean_unclipped": sum(map(math.exp, [1.0, -0.1, 0.0, 0.2, -2.0, 2.0, 0.3])) / 7,
        "multiplier_mean": sum(0.6 + 0.4 * weight for weight in weights) / 7,
        "nonfinite_tokens": 0.0,
    }
    assert metrics == pytest.approx({f"credit/{key}": value for key, value in expected.items()}, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("method", [Rlsd, Cepo])
@pytest.mark.parametrize("seed", range(4))
def test_diagnostics_are_a_loop_over_the_weighed_tokens(seed: int, method: type[Rlsd] | type[Cepo]) -> None:
    batch, algorithm = random_sample(seed).batch, method(eps_w=0.3)
    adv_BT = Grpo().advantages(batch, 0).adv_BT
    numerator_BT, denominator_BT = both(batch)
    deltas: dict[str, list[float]] = {"correct": [], "wrong": []}
    against = clipped = 0
    for row in range(batch.size):
        for position in range(len(batch.response_ids[row])):
            advantage = float(adv_BT[row, position])
            if advantage == 0:
                continue
            delta = float(numerator_BT[row, position]) - float(denominator_BT[row, position])
            deltas["correct" if batch.reward_B[row] >= 0.5 else "wrong"].append(delta)
            against += delta * advantage < 0
            clipped += not 0.7 <= math.exp(math.copysign(delta, delta * advantage)) <= 1.3
    all_deltas = deltas["correct"] + deltas["wrong"]
    expected = {
        "credit/tokens": len(all_deltas),
        "credit/delta_mean": sum(all_deltas) / len(all_deltas),
        "credit/delta_pos_fraction": sum(delta > 0 for delta in all_deltas) / len(all_deltas),
        "credit/delta_pos_fraction_correct": sum(d > 0 for d in deltas["correct"]) / len(deltas["correct"]),
        "credit/delta_neg_fraction_wrong": sum(d < 0 for d in deltas["wrong"]) / len(deltas["wrong"]),
        "credit/delta_mean_correct": sum(deltas["correct"]) / len(deltas["correct"]),
        "credit/delta_mean_wrong": sum(deltas["wrong"]) / len(deltas["wrong"]),
        "credit/wrong_direction_fraction": against / len(all_deltas),
        "credit/clip_fraction": clipped / len(all_deltas),
    }
    metrics = algorithm.advantages(batch, 0).metrics
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, rel=1e-4)


def bare(batch: TrainBatch) -> TrainBatch:
    return make_batch(batch.mask_BT, batch.reward_B, batch.group_B)


def level(batch: TrainBatch) -> TrainBatch:
    return make_batch(batch.mask_BT, torch.full((4,), 0.1), batch.group_B, evidence=both(batch))


@pytest.mark.parametrize(
    ("algorithm", "batch", "lam"),
    [
        (Grpo(), hand_made(), 0.0),
        (Rlsd(), bare(hand_made()), 0.5),
        (Cepo(), bare(hand_made()), 0.5),
        (Cepo(), level(hand_made()), 0.5),
    ],
    ids=["no-method", "rlsd-no-evidence", "cepo-no-evidence", "no-advantage"],
)
def test_diagnostics_are_zero_but_present_where_nothing_was_weighed(
    algorithm: Algorithm, batch: TrainBatch, lam: float
) -> None:
    metrics = algorithm.advantages(batch, 0).metrics
    assert {key: metrics[key] for key in KEYS} == dict.fromkeys(KEYS, 0.0) | {"credit/lambda": lam}
    assert {key: value for key, value in metrics.items() if key not in KEYS} == dict.fromkeys(
        SHARPER & set(metrics), 0.0
    )


@pytest.mark.parametrize("method", [Rlsd, Cepo])
def test_diagnostics_have_the_same_keys_where_something_was_weighed(method: Callable[..., Algorithm]) -> None:
    assert set(method().advantages(hand_made(), 0).metrics) == (KEYS | SHARPER if method is Cepo else KEYS)
