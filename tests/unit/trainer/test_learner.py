"""One update of the tiny model's adapter, against plain loops over the full vocabulary.

Shapes: B sequences, T response tokens (padded), N tokens, D hidden units, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.batch import TrainBatch
from cepo.errors import UserError
from cepo.model.forward import CHUNK_BYTES, ResponseStates, response_logps, sampled
from services.trainer.learning.batch import pack
from services.trainer.learning.learner import Learner
from tests.helpers.factories import make_config, make_ragged
from tests.helpers.families import build
from tests.parity.support import Scored

torch.set_num_threads(1)
LENGTHS = [(3, 9, 0, 5), (12, 1, 7, 2), (4, 4, 6, 8)]
UNCLIPPED = "optim.max_grad_norm=1e9"
AGGREGATIONS = ["token-mean", "seq-mean-token-mean", "dr-grpo"]


def make_learner(*overrides: str) -> Learner:
    """A learner whose adapter is not zero, so that every matrix has a gradient."""
    learner = Learner(make_config(*overrides))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in learner.parameters:
            parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.05).to(parameter.device))
    return learner


def model_of(learner: Learner) -> Any:
    return learner.peft.get_base_model()


def make_batch(step: int = 0, *overrides: str) -> tuple[TrainBatch, Tensor]:
    batch = pack(make_ragged(LENGTHS))
    return batch, make_config(*overrides).algorithm.advantages(batch, step).adv_BT


def updated(batch: TrainBatch, adv_BT: Tensor, *overrides: str, step: int = 0) -> tuple[Learner, dict[str, float]]:
    learner = make_learner(*overrides)
    return learner, learner.update(batch, adv_BT, make_config(*overrides).algorithm, step)


def gradients(learner: Learner) -> list[Tensor]:
    grads = [parameter.grad for parameter in learner.parameters]
    assert all(gradient is not None for gradient in grads)
    return [gradient for gradient in grads if gradient is not None]


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-6) -> None:
    assert max(float(gradient.abs().max()) for gradient in expected) > 1000 * tolerance
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def plain_logps(model: Any, prompt: tuple[int, ...], response: tuple[int, ...], temperature: float) -> Tensor:
    logits_SV = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0] / temperature
    logp_SV = torch.log_softmax(logits_SV, dim=-1)
    at = torch.arange(len(response)) + len(prompt) - 1
    return logp_SV[at, torch.tensor(response, dtype=torch.long)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_their_gradient_equal_a_full_softmax(temperature: float) -> None:
    learner, (batch, _) = make_learner(), make_batch()
    weight_BT = torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(1))
    logp_BT = response_logps(model_of(learner), batch.prompt_ids, batch.response_ids, temperature)
    (logp_BT * weight_BT).sum().backward()
    actual = gradients(learner)
    learner.optimizer.zero_grad()
    for i, (prompt, response) in enumerate(zip(batch.prompt_ids, batch.response_ids, strict=True)):
        plain_T = plain_logps(model_of(learner), prompt, response, temperature)
        torch.testing.assert_close(logp_BT[i, : len(response)].detach(), plain_T.detach(), rtol=0, atol=1e-5)
        assert not logp_BT[i, len(response) :].any()
        (plain_T * weight_BT[i, : len(response)]).sum().backward()
    assert_close(
        actual, gradients(learner), tolerance=1e-3
    )  # the gradients of an unnormalised sum reach several hundred


def test_a_rule_over_more_than_a_chunk_has_the_same_gradient() -> None:
    torch.manual_seed(0)
    words = 2**16
    head = torch.nn.Linear(6, words, bias=False)
    hidden_ND = torch.randn(CHUNK_BYTES // (4 * words) + 30, 6, requires_grad=True)
    target_N = torch.randint(0, words, (len(hidden_ND),))
    one_row_BT = torch.ones(1, len(hidden_ND), dtype=torch.bool)
    logp_N = ResponseStates(hidden_ND, target_N, one_row_BT, head, 0.7, [len(target_N)]).per_token(sampled)[0]
    plain_N = torch.log_softmax(head(hidden_ND) / 0.7, dim=-1).gather(1, target_N[:, None]).squeeze(1)
    torch.testing.assert_close(logp_N, plain_N)
    weight_N = torch.randn(len(hidden_ND))
    actual = torch.autograd.grad((logp_N * weight_N).sum(), [hidden_ND, head.weight])
    expected = torch.autograd.grad((plain_N * weight_N).sum(), [hidden_ND, head.weight])
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_gradient_does_not_depend_on_the_micro_batches(aggregation: str) -> None:
    batch, adv_BT = make_batch()
    common = (f"algorithm.aggregation={aggregation}", UNCLIPPED)
    whole, report = updated(batch, adv_BT, *common, "optim.tokens_per_microbatch=100000")
    for tokens in (1, 40):
        split, other = updated(batch, adv_BT, *common, f"optim.tokens_per_microbatch={tokens}")
        assert_close(gradients(split), gradients(whole))
        for key in ("loss/policy", "grad_norm", "rollout/logp_gap", "tokens/trained", "entropy/sampled"):
            assert other[key] == pytest.approx(report[key], rel=1e-4, abs=1e-6)


def test_checkpointed_layers_learn_the_same() -> None:
    batch, adv_BT = make_batch()
    plain, _ = updated(batch, adv_BT, UNCLIPPED)
    checkpointed, _ = updated(batch, adv_BT, UNCLIPPED, "optim.gradient_checkpointing=true")
    assert_close(gradients(checkpointed), gradients(plain))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_empty_response_changes_nothing(aggregation: str) -> None:
    batch, adv_BT = make_batch()
    rows = [row for row in range(batch.size) if batch.response_ids[row]]
    assert len(rows) == batch.size - 1
    common = (f"algorithm.aggregation={aggregation}", UNCLIPPED)
    with_it, _ = updated(batch, adv_BT, *common)
    without, _ = updated(batch.rows(rows), adv_BT[rows], *common)
    assert_close(gradients(with_it), gradients(without))


def test_sequences_without_advantage_count_in_the_denominator_alone() -> None:
    batch, adv_BT = make_batch()
    first = [0, 1, 2, 3]
    alone, _ = updated(batch.rows(first), adv_BT[first], UNCLIPPED)
    diluted_BT = adv_BT.clone()
    diluted_BT[4:] = 0
    diluted, report = updated(batch, diluted_BT, UNCLIPPED)
    share = float(batch.mask_BT[first].sum() / batch.mask_BT.sum())
    assert_close(gradients(diluted), [gradient * share for gradient in gradients(alone)])
    assert report["tokens/trained"] == float(batch.mask_BT[first].sum())


def test_a_batch_without_advantage_leaves_weights_and_momentum_alone() -> None:
    batch, adv_BT = make_batch()
    overrides = ("optim.weight_decay=0.5", "optim.minibatches=2")
    learner, _ = updated(batch, adv_BT, *overrides)
    files, momenta = learner.adapter_files(), [state["exp_avg"].clone() for state in learner.optimizer.state.values()]
    report = learner.update(batch, torch.zeros_like(adv_BT), make_config(*overrides).algorithm, 1)
    assert learner.adapter_files() == files
    for momentum, state in zip(momenta, learner.optimizer.state.values(), strict=True):
        assert torch.equal(momentum, state["exp_avg"])
    assert (report["grad_norm"], report["loss/policy"], report["tokens/trained"]) == (0.0, 0.0, 0.0)


def test_later_mini_batches_use_the_old_log_probs_of_the_steps_start() -> None:
    batch, adv_BT = make_batch()
    overrides = ("optim.lr=1e-2", UNCLIPPED)
    updated_learner, report = updated(batch, adv_BT, *overrides, "optim.minibatches=2")
    assert report["kl/old_new"] != 0.0

    learner, algorithm = make_learner(*overrides), make_config(*overrides).algorithm
    first, second = list(range(8)), list(range(8, 12))  # the first mini-batch has two of the three groups
    last = batch.rows(second)
    with torch.no_grad():
        old_BT = response_logps(model_of(learner), last.prompt_ids, last.response_ids, 1.0)
    learner.update(batch.rows(first), adv_BT[first], algorithm, 0)
    learner.optimizer.zero_grad()
    logp_BT = response_logps(model_of(learner), last.prompt_ids, last.response_ids, 1.0)
    assert (logp_BT - old_BT).abs().max() > 0.1
    width = last.mask_BT.shape[1]
    algorithm.loss(Scored(logp_BT), old_BT, last, adv_BT[second][:, :width], last).loss.backward()
    assert_close(gradients(updated_learner), gradients(learner), tolerance=1e-5)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    schedule = ("optim.schedule=cosine", "optim.lr=1.0", "optim.warmup_steps=2", "loop.steps=6")
    learner = make_learner(*schedule)
    rates = [learner.learning_rate(step) for step in range(7)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)
    assert {make_learner("optim.lr=0.25").learning_rate(step) for step in (0, 1, 29)} == {0.25}
    batch, adv_BT = make_batch()
    resting, report = updated(batch, adv_BT, *schedule, step=0)
    assert (resting.adapter_files(), report["learning_rate"]) == (make_learner().adapter_files(), 0.0)
    moved, report = updated(batch, adv_BT, *schedule, step=4)
    assert moved.adapter_files() != make_learner().adapter_files()
    assert report["learning_rate"] == pytest.approx(0.5)


def test_the_reported_gradient_norm_is_that_before_clipping() -> None:
    batch, adv_BT = make_batch()
    free, report = updated(batch, adv_BT, UNCLIPPED)
    norm = float(torch.cat([gradient.flatten() for gradient in gradients(free)]).norm())
    assert report["grad_norm"] == pytest.approx(norm, rel=1e-5)
    clipped, report = updated(batch, adv_BT, f"optim.max_grad_norm={norm / 4}")
    assert report["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert_close(gradients(clipped), [gradient / 4 for gradient in gradients(free)])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gap_to_the_engine_is_a_mean_over_the_trained_tokens(temperature: float) -> None:
    batch, adv_BT = make_batch()
    sampling = f"sampling.temperature={temperature}"
    with torch.no_grad():
        own_BT = response_logps(model_of(make_learner()), batch.prompt_ids, batch.response_ids, temperature)
    assert updated(replace(batch, rollout_logp_BT=own_BT), adv_BT, sampling)[1]["rollout/logp_gap"] < 1e-5
    shifted = replace(batch, rollout_logp_BT=(own_BT + 0.25) * batch.mask_BT)
    report = updated(shifted, adv_BT, sampling)[1]
    assert report["rollout/logp_gap"] == pytest.approx(0.25, abs=1e-5)
    assert [report[f"rollout/ratio_{p}"] for p in ("p01", "p50", "p99")] == pytest.approx([math.exp(-0.25)] * 3, 1e-4)


@pytest.mark.parametrize("updates", [1, 3])
def test_the_weights_of_the_present_student_are_measured_as_the_loss_saw_them(updates: int) -> None:
    method = 'algorithm={name="rlsd", student_logp="current", clip_high=9.0}'
    optim = (f"optim.minibatches={updates}", "optim.lr=1e-1", "optim.schedule=constant")
    common = (method, "sampling.prompts=3", *optim)
    algorithm = make_config(*common).algorithm
    batch = pack(make_ragged(LENGTHS, asks=algorithm.asks))
    adv_BT = algorithm.advantages(batch, 0).adv_BT
    with torch.no_grad():
        first_BT = response_logps(model_of(make_learner(*common)), batch.prompt_ids, batch.response_ids, 1.0)
    report = updated(batch, adv_BT, *common)[1]
    expected = algorithm.diagnostics(batch, adv_BT, first_BT, 0)
    assert report["credit/tokens"] == expected["credit/tokens"] == report["tokens/trained"]
    same = [report[key] == pytest.approx(value, rel=1e-3, abs=1e-4) for key, value in expected.items()]
    assert all(same) is (updates == 1)  # in later updates the student has changed
    assert report["credit/delta_std"] > 0


def test_the_same_seed_gives_the_same_bytes() -> None:
    batch, adv_BT = make_batch()
    first, second = (updated(batch, adv_BT)[0].adapter_files() for _ in range(2))
    assert first == second
    assert Learner(make_config("loop.seed=1")).adapter_files() != Learner(make_config("loop.seed=2")).adapter_files()


def test_the_base_is_scored_without_the_adapter() -> None:
    learner, ids = make_learner(), list(range(10, 26))
    assert learner.canary(ids, base=True) == pytest.approx(Learner(make_config()).canary(ids), abs=1e-4)
    assert abs(sum(learner.canary(ids)) - sum(learner.canary(ids, base=True))) > 0.01
    assert learner.bound_modules == 28


def test_what_cannot_be_loaded_or_adapted_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lora\.targets=\['nowhere'\]: "):
        Learner(make_config('lora.targets=["nowhere"]'))
    build("gemma2").save_pretrained(tmp_path / "capped")
    with pytest.raises(
        UserError, match=r"of the family gemma2 is not supported: the log-probs of .* differ from its own"
    ):
        Learner(make_config(f"model.path={tmp_path / 'capped'}"))
    with pytest.raises(UserError, match="cannot be loaded: "):
        Learner(make_config(f"model.path={tmp_path}"))
