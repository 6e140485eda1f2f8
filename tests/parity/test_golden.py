"""Golden values of the published code, reproduced by the public functions. Each golden file names its source."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.batch import EvidenceTensors
from cepo.algo.core import credit, group_advantage, masked_mean, reweight
from cepo.algo.losses import Totals, aggregate, clip_fractions, clipped_surrogate
from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.rlsd import Rlsd
from cepo.algo.schedules import constant, cosine_with_warmup, linear_decay, warmup_decay
from tests.parity.support import Scored, golden, make_batch, tensor

ADVANTAGES = golden("advantages")
CEPO = golden("cepo_weighting")
RLSD = golden("rlsd_reweighting")
EASYR1 = golden("policy_loss_easyr1")
VERL = golden("policy_loss_verl")
SCHEDULES = golden("schedules")

RLSD_CASES = [
    case for case in RLSD["cases"] if not case.get("negative_only", False) and case.get("thought_mask") is None
]
MASKED_CASES = [case for case in RLSD["cases"] if case not in RLSD_CASES]
SURROGATE_CASES = [
    *(
        case | {"dual": case["clip_dual"], "agg": {"token": "token-mean", "seq": "seq-mean-token-mean"}[case["avg"]]}
        for case in EASYR1["cases"]
        if case["loss_type"] == "default"
    ),
    *(case | {"dual": case["clip_c"]} for case in VERL["cases"] if case["fn"] == "vanilla"),
]


def assert_close(actual: Tensor, expected: Tensor, *, rtol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize(
    ("estimator", "scale"), [("grpo", "std"), ("verl_grpo_std", "std"), ("verl_dr_grpo_nostd", "none")]
)
@pytest.mark.parametrize("kind", ["outcome", "with_token_kl"])
def test_group_advantage_reproduces_the_published_code(kind: str, estimator: str, scale: Any) -> None:
    inputs = ADVANTAGES["inputs"]
    reward_B = tensor(inputs["token_level_rewards"][kind]).sum(dim=1)
    group_B = torch.tensor(["pqr".index(uid) for uid in inputs["uid"]])
    adv_B = group_advantage(reward_B, group_B, scale=scale)
    adv_BT = adv_B[:, None] * tensor(inputs["response_mask"])
    assert_close(adv_BT, tensor(ADVANTAGES["outputs"][kind][estimator]["advantages"]), rtol=1e-4)


@pytest.mark.parametrize("case", CEPO["cases"], ids=lambda case: f"{case['lam']}-{case['eps_w']}")
def test_reweight_reproduces_the_published_cepo(case: dict[str, Any]) -> None:
    inputs = CEPO["inputs"]
    numerator_BT, denominator_BT = tensor(inputs["pos_teacher_log_probs"]), tensor(inputs["neg_teacher_log_probs"])
    adv_BT = reweight(tensor(inputs["advantages"]), numerator_BT, denominator_BT, case["lam"], case["eps_w"])
    assert_close(adv_BT, tensor(case["cepo_advantages"]))


@pytest.mark.parametrize("case", CEPO["hazards"], ids=lambda case: case["name"])
def test_reweight_agrees_on_infinite_evidence_and_is_a_number_where_the_published_cepo_is_not(
    case: dict[str, Any],
) -> None:
    before_BT, official_BT = tensor(case["advantages"]), tensor(case["cepo_advantages"])
    adv_BT = reweight(before_BT, tensor(case["pos"]), tensor(case["neg"]), case["lam"], case["eps_w"])
    # Where the published code returns NaN, the result is the unchanged A: if A is 0 or both log-probs are -inf.
    assert_close(adv_BT, torch.where(official_BT.isnan(), before_BT, official_BT))


def test_delta_statistics_reproduce_the_published_cepo() -> None:
    inputs, expected = CEPO["inputs"], CEPO["diagnostics"]
    adv_BT, mask_BT = tensor(inputs["advantages"]), tensor(inputs["response_mask"])
    parts = credit(adv_BT, tensor(inputs["pos_teacher_log_probs"]), tensor(inputs["neg_teacher_log_probs"]), 0.5, 0.5)
    statistics = {
        "delta_mean": masked_mean(parts.delta_BT, mask_BT),
        "delta_mean_pos": masked_mean(parts.delta_BT, mask_BT * (adv_BT > 0)),
        "delta_mean_neg": masked_mean(parts.delta_BT, mask_BT * (adv_BT < 0)),
        "frac_wrong_dir": masked_mean(parts.delta_BT * adv_BT < 0, mask_BT),
        "frac_delta_positive": masked_mean(parts.delta_BT > 0, mask_BT),
        "frac_delta_negative": masked_mean(parts.delta_BT < 0, mask_BT),
    }
    assert statistics == pytest.approx({key: expected[key] for key in statistics}, rel=1e-5)


@pytest.mark.parametrize("case", RLSD_CASES, ids=lambda case: f"{case['impl']}-{case['lam']}-{case['eps_w']}")
def test_reweight_reproduces_the_published_rlsd(case: dict[str, Any]) -> None:
    inputs = RLSD["inputs"]
    adv_BT, mask_BT = tensor(inputs["advantages"]), tensor(inputs["response_mask"])
    evidence = tensor(inputs["teacher_log_probs"]), tensor(inputs["student_log_probs"])
    assert_close(reweight(adv_BT, *evidence, case["lam"], case["eps_w"]), tensor(case["advantages_out"]))

    parts, metrics = credit(adv_BT, *evidence, case["lam"], case["eps_w"]), case["metrics"]
    clip_fraction = masked_mean(parts.clipped_BT, mask_BT)
    weight_mean = masked_mean(parts.weight_clipped_BT, mask_BT)
    if case["impl"] == "cepo_repo":
        assert clip_fraction == pytest.approx(metrics["rlsd/credit_clip_ratio"], rel=1e-5)
        assert weight_mean == pytest.approx(metrics["rlsd/w_t_mean"], rel=1e-5)
    else:
        ratios = metrics["grpo_opsd/stgca_clip_low_ratio"] + metrics["grpo_opsd/stgca_clip_high_ratio"]
        assert clip_fraction == pytest.approx(ratios, rel=1e-5)
        assert weight_mean == pytest.approx(metrics["grpo_opsd/stgca_clipped_weight_mean"], rel=1e-5)


@pytest.mark.parametrize(
    "case",
    MASKED_CASES,
    ids=lambda case: f"{case['lam']}-{case['eps_w']}-{'wrong' if case['negative_only'] else 'thought'}",
)
def test_weighing_some_tokens_reproduces_the_published_rlsd(case: dict[str, Any]) -> None:
    inputs = RLSD["inputs"]
    adv_BT, evidence = (
        tensor(inputs["advantages"]),
        (tensor(inputs["teacher_log_probs"]), tensor(inputs["student_log_probs"])),
    )
    where_BT = adv_BT < 0 if case["negative_only"] else tensor(case["thought_mask"]).bool()
    parts = credit(adv_BT, *evidence, case["lam"], case["eps_w"], where_BT)
    assert_close(parts.adv_BT, tensor(case["advantages_out"]))


@pytest.mark.parametrize(
    "case", [case for case in RLSD["cases"] if case["impl"] == "rlsd_official" and not case["thought_mask"]]
)
def test_the_weights_put_on_in_the_loss_are_the_published_ones(case: dict[str, Any]) -> None:
    inputs = RLSD["inputs"]
    adv_BT, mask_BT = tensor(inputs["advantages"]), tensor(inputs["response_mask"])
    algorithm = Rlsd(
        student_logp="current",
        lam=case["lam"],
        eps_w=case["eps_w"],
        negative_only=case["negative_only"],
        schedule="constant",
    )
    batch = make_batch(mask_BT, torch.zeros(6), torch.zeros(6, dtype=torch.long))
    measured = EvidenceTensors(tensor(inputs["teacher_log_probs"]), torch.ones(6, dtype=torch.bool))
    batch = replace(batch, evidence={algorithm.asks[0]: measured})
    logp_BT = (tensor(inputs["student_log_probs"]) * mask_BT).requires_grad_()
    algorithm.loss(Scored(logp_BT), logp_BT.detach(), batch, adv_BT * mask_BT, batch).loss.backward()
    # At a ratio of 1 the gradient of the surrogate is the advantage it was given, over the number of tokens.
    assert_close(-logp_BT.grad * mask_BT.sum(), tensor(case["advantages_out"]) * mask_BT)


def test_the_published_rlsd_cases_are_all_there() -> None:
    assert [case["negative_only"] for case in MASKED_CASES].count(True) == 5
    assert len(MASKED_CASES) == 10
    assert [case["impl"] for case in RLSD_CASES].count("cepo_repo") == 5
    assert [case["impl"] for case in RLSD_CASES].count("rlsd_official") == 5


@pytest.mark.parametrize(
    "case", SURROGATE_CASES, ids=lambda case: "-".join(str(case[key]) for key in ("adv", "clip_high", "dual", "agg"))
)
def test_surrogate_and_gradient_reproduce_the_published_code(case: dict[str, Any]) -> None:
    inputs = EASYR1["inputs"]
    logp_BT = tensor(inputs["log_probs"]).requires_grad_()
    loss = clipped_surrogate(
        logp_BT,
        tensor(inputs["old_log_probs"]),
        tensor(inputs["advantages"][case["adv"]]),
        tensor(inputs["response_mask"]),
        clip_low=case["clip_low"],
        clip_high=case["clip_high"],
        dual_clip=case["dual"],
        aggregation=case["agg"],
    )
    loss.backward()
    assert_close(loss.detach(), torch.tensor(case["loss"]))
    assert_close(logp_BT.grad, tensor(case["grad"]))
    assert logp_BT.grad[0, 3] == 0  # a log-ratio of +25


@pytest.mark.parametrize("case", [case for case in SURROGATE_CASES if "loss_type" in case])
def test_clip_fractions_add_up_to_the_published_one(case: dict[str, Any]) -> None:
    inputs = EASYR1["inputs"]
    logps = tensor(inputs["log_probs"]), tensor(inputs["old_log_probs"])
    adv_BT, mask_BT = tensor(inputs["advantages"][case["adv"]]), tensor(inputs["response_mask"])
    low_BT, high_BT = clip_fractions(*logps, adv_BT, clip_low=case["clip_low"], clip_high=case["clip_high"])
    total = masked_mean(low_BT, mask_BT) + masked_mean(high_BT, mask_BT)
    assert total == pytest.approx(case["metrics"]["pg_clipfrac_higher"], rel=1e-5)


@pytest.mark.parametrize("case", VERL["agg_loss_cases"], ids=lambda case: f"{case['mode']}-{len(case['args'])}")
def test_aggregation_reproduces_verl(case: dict[str, Any]) -> None:
    loss_BT, mask_BT = tensor(VERL["agg_inputs"]["loss_mat"]), tensor(VERL["agg_inputs"]["agg_mask"])
    args, scale = case["args"], 1.0
    totals = Totals.of(mask_BT)
    if args:
        totals = Totals(args["batch_num_tokens"], args["global_batch_size"], args["loss_scale_factor"])
        # verl multiplies by dp_size, to undo the average over data-parallel ranks, except under the constant; the
        # totals count every rank already, so ranks add up.
        scale = 1.0 if case["mode"] == "seq-mean-token-sum-norm" else args["dp_size"]
    assert_close(aggregate(loss_BT, mask_BT, case["mode"], totals) * scale, torch.tensor(case["loss"]))


@pytest.mark.parametrize(
    ("name", "lam0", "decay_steps"), [("cepo_lambda0_0.5_T25", 0.5, 25), ("cepo_lambda0_1.0_T10", 1.0, 10)]
)
def test_lambda_of_cepo_reproduces_the_published_steps(name: str, lam0: float, decay_steps: int) -> None:
    used = SCHEDULES[name]["used"]
    assert [linear_decay(lam0, decay_steps, step) for step in range(len(used))] == pytest.approx(used, abs=1e-8)
    cepo = Cepo(lam=lam0, decay_steps=decay_steps)
    assert [cepo.lam_at(step) for step in range(len(used))] == pytest.approx(used, abs=1e-8)


def test_constant_lambda_reproduces_the_published_steps() -> None:
    used = SCHEDULES["cepo_constant_0.5"]["used"]
    assert [constant(0.5, step) for step in range(len(used))] == used
    assert [Cepo(schedule="constant").lam_at(step) for step in range(len(used))] == used


def test_lambda_of_rlsd_in_the_cepo_repository_is_one_step_ahead() -> None:
    used = SCHEDULES["rlsd_cepo_repo_lambda0_0.5_T25"]["used"]
    rlsd = Rlsd(lam=0.5, decay_steps=25, offset=1)
    assert [rlsd.lam_at(step) for step in range(len(used))] == pytest.approx(used, abs=1e-8)


@pytest.mark.parametrize(
    ("name", "warmup_steps", "decay_steps"),
    [("rlsd_official_0.5_warm0_decay60", 0, 60), ("rlsd_official_0.5_warm5_decay10", 5, 10)],
)
def test_lambda_of_the_official_rlsd_reproduces_the_published_steps(
    name: str, warmup_steps: int, decay_steps: int
) -> None:
    used = SCHEDULES[name]["used"]
    factors = [warmup_decay(0.5, warmup_steps, decay_steps, step + 1) for step in range(len(used))]
    assert factors == pytest.approx(used, abs=1e-8)
    rlsd = Rlsd(schedule="warmup_decay", warmup_steps=warmup_steps, decay_steps=decay_steps, offset=1)
    assert [rlsd.lam_at(step) for step in range(len(used))] == pytest.approx(used, abs=1e-8)


def test_learning_rate_factor_reproduces_the_published_steps() -> None:
    factors = SCHEDULES["lr_factor_cosine_warm5_total50"]["factor_before_update_k"]
    assert [cosine_with_warmup(5, 50, step) for step in range(len(factors))] == pytest.approx(factors, abs=1e-8)
