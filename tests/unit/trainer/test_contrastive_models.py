"""Critical-token DPO's estimators on the tiny model: their inputs, what they leave unchanged, and resuming.

Shapes: B sequences, T response tokens (padded), V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from cepo.algo.batch import TrainBatch
from cepo.algo.methods.ctdpo import ESTIMATORS, RIGHT, WRONG
from cepo.messages.groups import BASE_POLICY
from cepo.service import adapters
from services.trainer.learning.batch import pack
from services.trainer.learning.learner import Learner
from services.trainer.pipeline import Pinned, Pipeline
from tests.helpers.contexts import with_weights
from tests.helpers.factories import make_config, make_ragged
from tests.unit.trainer.test_auxiliary import CANARY, make_learner
from tests.unit.trainer.test_checkpoint import Process, timeless

torch.set_num_threads(1)
BASE = Pinned(BASE_POLICY, BASE_POLICY)
LENGTHS = [(3, 9), (12, 1), (0, 7), (4, 4)]
CTDPO = 'algorithm={name="ctdpo", estimator_steps=2, estimator_lr=1e-2}'
DPO = 'algorithm={name="dpo"}'


def make_pairs(algorithm: Any, seed: int = 0) -> TrainBatch:
    """Ragged pairs, one with an empty response."""
    return pack(make_ragged(LENGTHS, seed=seed, asks=algorithm.asks))


def plain_logits(learner: Learner, name: str, batch: TrainBatch) -> list[Tensor]:
    """The log-probs [T, V] of each response by one unpadded forward pass of the whole model."""
    model, logits = learner.peft.get_base_model(), []
    with learner.context.using_adapter(name), torch.no_grad():
        for prompt, response in zip(batch.prompt_ids, batch.response_ids, strict=True):
            logits_SV = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
            logits.append(logits_SV[len(prompt) - 1 : len(prompt) + len(response) - 1])
    return logits


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_estimate_is_that_of_both_models_logits_over_the_whole_vocabulary(strength: float) -> None:
    learner, estimators = make_learner(CTDPO, f"algorithm.strength={strength}", "optim.tokens_per_microbatch=30")
    batch = make_pairs(make_config(CTDPO).algorithm)
    weight_BT = estimators.prepare(batch, 2).token_weight_BT
    assert weight_BT is not None
    both = [plain_logits(learner, name, batch) for name in (RIGHT, WRONG)]
    for row, (right_TV, wrong_TV) in enumerate(zip(*both, strict=True)):
        ids = batch.response_ids[row]
        contrast_TV = (1 + strength) * right_TV.log_softmax(1) - strength * wrong_TV.log_softmax(1)
        prob_T = contrast_TV.softmax(1)[range(len(ids)), list(ids)]
        expected_T = prob_T if batch.accuracy_B[row] == 1 else 1 - prob_T
        torch.testing.assert_close(weight_BT[row, : max(0, len(ids) - 1)], expected_T[:-1], rtol=1e-3, atol=1e-5)
        assert weight_BT[row, max(0, len(ids) - 1) :].tolist() == [1.0] * bool(ids) + [0.0] * (12 - len(ids))


def test_the_estimators_gradients_are_their_own_whatever_is_kept_for_them() -> None:
    batch, results = make_pairs(make_config(CTDPO).algorithm), []
    for overrides in ((), ("optim.tokens_per_microbatch=1",), ("optim.gradient_checkpointing=true",)):
        learner, estimators = make_learner(CTDPO, *overrides)
        report = estimators.update(batch, 0)
        assert all(parameter.grad is None for parameter in learner.parameters)
        results.append(([parameter.grad for parameter in estimators.model.parameters()], report))
    for gradients, report in results[1:]:
        assert report == pytest.approx(results[0][1], rel=1e-3)
        for one, whole in zip(gradients, results[0][0], strict=True):
            assert whole.any()
            torch.testing.assert_close(one, whole, rtol=1e-3, atol=1e-5)


def test_the_policy_learns_as_it_would_without_estimators() -> None:
    with_them, without = Learner(make_config(CTDPO)), Learner(make_config(DPO))
    assert with_them.adapter_files() == without.adapter_files()
    assert with_them.bound_modules == without.bound_modules
    ctdpo, dpo = make_config(CTDPO).algorithm, make_config(DPO).algorithm
    for step in range(4):
        batch = with_them.auxiliary.prepare(make_pairs(ctdpo, step), step)
        if step < 2:
            with_them.learn(batch, step)
        else:
            plain = replace(batch, token_weight_BT=None)
            adv_BT = ctdpo.advantages(plain, step).adv_BT
            both = ((with_them, ctdpo), (without, dpo))
            reports = [timeless(learner.update(plain, adv_BT, method, step)) for learner, method in both]
            assert reports[0] == reports[1]
            assert reports[0]["grad_norm"] > 0
        assert with_them.adapter_files() == without.adapter_files()
        for base in (True, False):
            assert with_them.canary(CANARY, base=base) == without.canary(CANARY, base=base)
    names = load(with_them.adapter_files()[adapters.FILES[1]]).keys()
    assert not any(f".{name}." in key for key in names for name in ESTIMATORS)


def test_first_the_estimators_learn_alone_and_then_the_policy() -> None:
    config = make_config(CTDPO)
    learner = Learner(config)
    moved = []
    for step in range(4):
        files = learner.adapter_files()
        states = [parameter.detach().clone() for parameter in with_weights(learner.auxiliary).model.parameters()]
        _, report = learner.learn(make_pairs(config.algorithm, step), step)
        after = with_weights(learner.auxiliary).model.parameters()
        estimated = any(not torch.equal(one, two) for one, two in zip(states, after, strict=True))
        moved.append((estimated, learner.adapter_files() != files, report["tokens/trained"] > 0))
        assert ("estimator/loss_right" in report, "preference/margin" in report) == (step < 2, step >= 2)
    assert moved == [(True, False, False)] * 2 + [(False, True, True)] * 2


def test_the_estimators_come_to_prefer_their_own_side() -> None:
    config = make_config('algorithm={name="ctdpo", estimator_steps=12, estimator_lr=3e-3}')
    learner = Learner(config)
    batch = make_pairs(config.algorithm)
    reports = [learner.auxiliary.update(batch, step) for step in range(12)]
    for name in (RIGHT, WRONG):
        assert reports[-1][f"estimator/loss_{name}"] < 0.8 * reports[0][f"estimator/loss_{name}"]
    logp = {}
    for name in (RIGHT, WRONG):
        with learner.context.using_adapter(name), torch.no_grad():
            logp[name] = learner.context.logp(batch).sum(1)
    contrast_B, chosen_B = logp[RIGHT] - logp[WRONG], batch.accuracy_B == 1
    assert float(contrast_B[chosen_B].sum()) > 0 > float(contrast_B[~chosen_B].sum())


class Trainer(Process):
    """A process that trains on pairs."""

    def train(self, step: int) -> dict[str, float]:
        return self.learner.learn(make_pairs(self.config.algorithm, step), step)[1]


@pytest.mark.parametrize("stopped", [1, 2, 3], ids=["learning", "just frozen", "frozen"])
def test_resuming_is_bit_identical_in_either_phase(tmp_path: Path, stopped: int) -> None:
    unbroken, first = Trainer(tmp_path / "unbroken", CTDPO), Trainer(tmp_path, CTDPO)
    reports = [timeless(unbroken.train(step)) for step in range(4)]
    for step in range(stopped):
        first.train(step)
    first.checkpoints.save(Pipeline(stopped, (BASE,)))
    second = Trainer(tmp_path, CTDPO)
    torch.manual_seed(77)
    with torch.no_grad():
        for parameter in [*second.learner.parameters, *with_weights(second.learner.auxiliary).model.parameters()]:
            parameter.add_(torch.randn(parameter.shape).to(parameter.device))  # all state must come from the checkpoint
    second.checkpoints.restore()
    assert [timeless(second.train(step)) for step in range(stopped, 4)] == reports[stopped:]
    assert second.learner.adapter_files() == unbroken.learner.adapter_files()
    restored, expected = (trainer.learner.auxiliary.state_dict()["model"] for trainer in (second, unbroken))
    assert all(torch.equal(restored[name], value) for name, value in expected.items())
