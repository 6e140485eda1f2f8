"""Metrics of token credit: counted by hand, by loops, and their keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import pstdev

import pytest
import torch

from cepo.algo.base import Algorithm
from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.algo.core import reweight
from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.rlsd import Rlsd
from cepo.algo.teacher import TeacherSource
from cepo.algo.variants import Grpo
from cepo.messages.groups import Ask, ContextName, Weights
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
        *(f"size_tenth_{tenth:02d}" for tenth in range(10)),
        "size_sure",
        "size_fork",
        "fork_fraction",
        "ruled_out_blamed",
    )
}
SHARPER = {"credit/sharper_correct", "credit/sharper_wrong"}
"""Metric keys of the methods with a rejected context."""


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
        **dict.fromkeys([f"size_tenth_{tenth:02d}" for tenth in range(10)], 0.0),
        "size_tenth_00": (1.0 + 0.2 + 2.0) / 3,  # the first tokens
        "size_tenth_03": (0.1 + 2.0) / 2,
        "size_tenth_06": (0.0 + 0.3) / 2,
        "size_sure": 0.8,
        "size_fork": 0.0,
        "fork_fraction": 0.0,
        "ruled_out_blamed": 1.0,  # the second token of the wrong response has log-prob -5 under r+, and delta -2
    }
    assert metrics == pytest.approx({f"credit/{key}": value for key, value in expected.items()}, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("method", [Rlsd, Cepo])
@pytest.mark.parametrize("seed", range(4))
def test_diagnostics_are_a_loop_over_the_weighed_tokens(seed: int, method: type[Rlsd] | type[Cepo]) -> None:
    band = (0.01, 0.0, 0.3, 1.0)[seed]
    batch, algorithm = random_sample(seed).batch, method(eps_w=0.3, dead_band=band)
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
            against += delta * math.copysign(1.0, advantage) < -band
            clipped += not 0.7 <= math.exp(math.copysign(delta, delta * advantage)) <= 1.3
    all_deltas = deltas["correct"] + deltas["wrong"]
    expected = {
        "credit/tokens": len(all_deltas),
        "credit/delta_mean": sum(all_deltas) / len(all_deltas),
        "credit/delta_pos_fraction": sum(delta > band for delta in all_deltas) / len(all_deltas),
        "credit/delta_zero_fraction": sum(abs(delta) <= band for delta in all_deltas) / len(all_deltas),
        "credit/delta_pos_fraction_correct": sum(d > band for d in deltas["correct"]) / len(deltas["correct"]),
        "credit/delta_neg_fraction_wrong": sum(d < -band for d in deltas["wrong"]) / len(deltas["wrong"]),
        "credit/delta_mean_correct": sum(deltas["correct"]) / len(deltas["correct"]),
        "credit/delta_mean_wrong": sum(deltas["wrong"]) / len(deltas["wrong"]),
        "credit/wrong_direction_fraction": against / len(all_deltas),
        "credit/clip_fraction": clipped / len(all_deltas),
    }
    metrics = algorithm.advantages(batch, 0).metrics
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, rel=1e-4)


def test_deltas_within_the_dead_band_count_as_zero_by_default() -> None:
    denominator_BT = torch.full((2, 3), -3.0)
    delta_BT = torch.tensor([[0.009, -0.009, 1e-7], [0.011, -0.011, 0.0]])
    batch = make_batch(
        torch.ones(2, 3),
        torch.tensor([1.0, 0.0]),
        torch.tensor([0, 0]),
        rollout_logp_BT=denominator_BT + torch.tensor([[0.009, 0.02, -0.02], [-0.009, -0.02, 0.02]]),
        evidence=(denominator_BT + delta_BT, denominator_BT),
    )
    metrics = Cepo().advantages(batch, 0).metrics
    keys = ("delta_pos_fraction", "delta_neg_fraction", "delta_zero_fraction", "wrong_direction_fraction")
    assert [metrics[f"credit/{key}"] for key in keys] == pytest.approx([1 / 6, 1 / 6, 4 / 6, 1 / 6])
    assert (metrics["credit/sharper_correct"], metrics["credit/sharper_wrong"]) == pytest.approx((1 / 3, 1 / 3))


def test_placements_of_credit_are_loops_over_the_weighed_tokens() -> None:
    batch, cepo = random_sample(3).batch, Cepo()
    logp_BT = torch.where(torch.arange(batch.mask_BT.shape[1]) % 3 == 0, -0.05, -0.5) * batch.mask_BT
    batch = replace(batch, rollout_logp_BT=logp_BT)
    adv_BT = Grpo().advantages(batch, 0).adv_BT
    numerator_BT, denominator_BT = both(batch)
    tenths: dict[int, list[float]] = {tenth: [] for tenth in range(10)}
    sizes: dict[bool, list[float]] = {True: [], False: []}
    blamed: list[bool] = []
    for row in range(batch.size):
        length, ruled_out = len(batch.response_ids[row]), False
        for at in range(length):
            if adv_BT[row, at] == 0:
                continue
            delta = float(numerator_BT[row, at] - denominator_BT[row, at])
            size = abs(delta) if abs(delta) > 0.01 else 0.0
            tenths[10 * at // length].append(size)
            sizes[float(logp_BT[row, at]) > math.log(0.9)].append(size)
            if not ruled_out and batch.reward_B[row] < 0.5 and numerator_BT[row, at] < math.log(0.05):
                ruled_out = True
                blamed.append(delta < -0.01 and float(adv_BT[row, at]) < 0)
    metrics = cepo.advantages(batch, 0).metrics
    for tenth, found in tenths.items():
        expected = sum(found) / len(found) if found else 0.0
        assert metrics[f"credit/size_tenth_{tenth:02d}"] == pytest.approx(expected, rel=1e-5)
    assert metrics["credit/size_sure"] == pytest.approx(sum(sizes[True]) / len(sizes[True]), rel=1e-5)
    assert metrics["credit/size_fork"] == pytest.approx(sum(sizes[False]) / len(sizes[False]), rel=1e-5)
    assert metrics["credit/fork_fraction"] == pytest.approx(len(sizes[False]) / (len(sizes[True]) + len(sizes[False])))
    assert metrics["credit/ruled_out_blamed"] == pytest.approx(sum(blamed) / len(blamed) if blamed else 0.0)


def test_sharpness_is_measured_with_the_trainers_own_log_probs() -> None:
    batch, cepo = hand_made(), Cepo()
    adv_BT = cepo.advantages(batch, 0).adv_BT
    nearer = cepo.diagnostics(batch, adv_BT, torch.full_like(adv_BT, -3.5), 0)
    assert nearer == {"credit/sharper_correct": 0.0, "credit/sharper_wrong": 1.0}
    assert cepo.diagnostics(bare(batch), adv_BT, adv_BT, 0) == {}


def test_without_r_minus_the_denominator_is_the_students_own_whichever_teacher_scores() -> None:
    """Algorithm 1, line 4: P- is P_S, which a teacher that is not the actor does not know."""
    teacher = TeacherSource(source="reference")
    student, other = Cepo(teacher=teacher), Cepo(teacher=teacher, no_negative="rlsd_teacher")
    assert student.asks[2] == Rlsd().asks[1] == Ask(context=ContextName.PLAIN, weights=Weights.POLICY)
    assert (student.asks[1].otherwise, other.asks[1].otherwise) == (None, ContextName.PLAIN)
    assert Cepo().asks == Cepo(no_negative="rlsd_teacher").asks == other.asks
    batch = hand_made()  # the last of the four responses has no r-
    logp_BT = torch.tensor([[-9.0] * 3, [-9.0] * 3, [-9.0] * 3, [-2.5, -2.9, -3.0]])
    measured = {
        student.asks[0]: batch.evidence[Cepo().asks[0]],
        student.asks[1]: batch.evidence[Cepo().asks[1]],
        student.asks[2]: EvidenceTensors(logp_BT, torch.ones(4, dtype=torch.bool)),
    }
    adv_BT = student.advantages(replace(batch, evidence=measured), 0).adv_BT
    base_BT = Grpo().advantages(batch, 0).adv_BT
    expected = reweight(base_BT[3:], batch.evidence[Cepo().asks[0]].logp_BT[3:], logp_BT[3:], 0.5, 0.5)
    torch.testing.assert_close(adv_BT[3:], expected)
    torch.testing.assert_close(adv_BT[:3], Cepo().advantages(batch, 0).adv_BT[:3])


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
