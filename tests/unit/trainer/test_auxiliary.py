"""Auxiliary models on the tiny model: they do not change the policy, they resume bit for bit, and they learn.

Shapes: B sequences, T response tokens (padded), D hidden units.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load
from torch import Tensor
from transformers import AutoModelForCausalLM

from cepo.algo.batch import TrainBatch
from cepo.algo.methods.clipo import POOLED
from cepo.algo.methods.ppo import ADAPTER
from cepo.errors import UserError
from cepo.messages.groups import BASE_POLICY
from cepo.model.forward import response_logps
from cepo.service import adapters
from services.trainer.learning.batch import pack
from services.trainer.learning.learner import Learner
from services.trainer.pipeline import Pinned, Pipeline
from tests.helpers.contexts import with_weights
from tests.helpers.factories import make_config, make_ragged
from tests.unit.trainer.test_checkpoint import Process, timeless

torch.set_num_threads(1)
BASE = Pinned(BASE_POLICY, BASE_POLICY)
LENGTHS = [(3, 9, 0, 5), (12, 1, 7, 2), (4, 4, 6, 8)]
PPO = 'algorithm={name="ppo", critic_lr=1e-2}'
CLIPO = 'algorithm={name="clipo", contrast="infonce"}'
GRPO = 'algorithm={name="grpo"}'
CANARY = list(range(10, 26))


def make_batch(algorithm: Any, seed: int = 0, hidden_size: int = 128) -> TrainBatch:
    """Ragged groups with the evidence that an algorithm asks for; pooled states are random."""
    batch = pack(make_ragged(LENGTHS, seed=seed, asks=algorithm.asks))
    if POOLED not in batch.evidence:
        return batch
    random = torch.Generator().manual_seed(seed)
    pooled = replace(batch.evidence[POOLED], pooled_BD=torch.randn(batch.size, hidden_size, generator=random))
    return replace(batch, evidence={**batch.evidence, POOLED: pooled})


def make_learner(*overrides: str) -> tuple[Learner, Any]:
    """A learner whose policy and auxiliary model both differ from the base; returns both."""
    learner = Learner(make_config("optim.max_grad_norm=1e9", *overrides))
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in [*learner.parameters, *with_weights(learner.auxiliary).model.parameters()]:
            parameter.add_((torch.randn(parameter.shape, generator=random) * 0.05).to(parameter.device))
    return learner, learner.auxiliary


def plain_values(learner: Learner, batch: TrainBatch, head: Any) -> list[Tensor]:
    """The values of each sequence by one unpadded forward pass under the critic's adapter."""
    model, values = learner.peft.get_base_model(), []
    for prompt, response in zip(batch.prompt_ids, batch.response_ids, strict=True):
        ids = torch.tensor([[*prompt, *response]])
        hidden_SD = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        start = len(prompt) - 1
        values.append((hidden_SD @ head.weight[0] + head.bias)[start : start + len(response)])
    return values


def test_values_and_their_gradient_are_those_of_a_plain_forward_under_the_critics_adapter() -> None:
    learner, critic = make_learner(PPO)
    batch = make_batch(make_config(PPO).algorithm)
    weight_BT = torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(1))
    head, context = critic.model["head"], learner.context
    learner.canary(CANARY, base=True)  # after which PEFT leaves the critic frozen
    with context.using_adapter(ADAPTER):
        value_BT = context.apply_head(head, batch)
        (value_BT * weight_BT).sum().backward()
    gradients = [parameter.grad.clone() for parameter in critic.model.parameters()]
    assert all(parameter.grad is None for parameter in learner.parameters)
    critic.optimizer.zero_grad()
    learner.peft.set_adapter(ADAPTER)
    for row, value_T in enumerate(plain_values(learner, batch, head)):
        torch.testing.assert_close(value_BT[row, : len(value_T)].detach(), value_T.detach(), rtol=0, atol=1e-4)
        assert not value_BT[row, len(value_T) :].any()
        (value_T * weight_BT[row, : len(value_T)]).sum().backward()
    for one, parameter in zip(gradients, critic.model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-3, atol=1e-3)
        assert one.any()


def test_the_published_adapter_is_the_policys_alone_and_loads_in_stock_peft(tmp_path: Path) -> None:
    config = make_config(PPO)
    learner = Learner(config)
    for step in range(2):
        learner.learn(make_batch(config.algorithm, step), step)
    files = learner.adapter_files()
    assert files[adapters.FILES[0]] == Learner(make_config(GRPO)).adapter_files()[adapters.FILES[0]]
    assert (
        load(files[adapters.FILES[1]]).keys()
        == load(Learner(make_config(GRPO)).adapter_files()[adapters.FILES[1]]).keys()
    )
    assert not any(ADAPTER in name for name in load(files[adapters.FILES[1]]))
    adapters.write(tmp_path / "v", files)
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    stock = PeftModel.from_pretrained(model, tmp_path / "v").eval().get_base_model()
    batch = make_batch(config.algorithm)
    with torch.no_grad():
        one, two = (
            response_logps(m, batch.prompt_ids, batch.response_ids, 1.0) for m in (stock, learner.peft.get_base_model())
        )
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_the_policy_learns_as_it_would_without_a_critic() -> None:
    with_critic, without = Learner(make_config(PPO)), Learner(make_config(GRPO))
    assert with_critic.adapter_files() == without.adapter_files()
    assert with_critic.bound_modules == without.bound_modules == 28
    algorithm = make_config(PPO).algorithm
    for step in range(2):
        batch = with_critic.auxiliary.prepare(make_batch(algorithm, step), step)
        adv_BT = algorithm.advantages(batch, step).adv_BT
        reports = [learner.update(batch, adv_BT, algorithm, step) for learner in (with_critic, without)]
        assert timeless(reports[0]) == timeless(reports[1])
        with_critic.auxiliary.update(batch, step)
        assert with_critic.adapter_files() == without.adapter_files()
        for base in (True, False):
            assert with_critic.canary(CANARY, base=base) == without.canary(CANARY, base=base)


@pytest.mark.parametrize(
    "override",
    ["optim.tokens_per_microbatch=1", "optim.tokens_per_microbatch=40", "optim.gradient_checkpointing=true"],
)
def test_the_critics_gradient_does_not_depend_on_the_micro_batches_or_on_what_is_kept_for_it(override: str) -> None:
    batch, results = make_batch(make_config(PPO).algorithm), []
    for overrides in ((), (override,)):
        _, critic = make_learner(PPO, *overrides)
        report = critic.update(critic.prepare(batch, 0), 0)
        results.append(([parameter.grad for parameter in critic.model.parameters()], report))
    (one, report), (two, other) = results
    assert other == pytest.approx(report, rel=1e-3, abs=1e-5)
    for whole, split in zip(one, two, strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("algorithm", ['{name="ppo", critic_warmup=2}', '{name="clipo", head_warmup=2}'])
def test_while_it_warms_up_the_auxiliary_model_learns_alone(algorithm: str) -> None:
    config = make_config(f"algorithm={algorithm}")
    learner = Learner(config)
    moved = []
    for step in range(3):
        files = learner.adapter_files()
        states = [parameter.detach().clone() for parameter in with_weights(learner.auxiliary).model.parameters()]
        _, report = learner.learn(make_batch(config.algorithm, step), step)
        after = with_weights(learner.auxiliary).model.parameters()
        assert any(not torch.equal(one, two) for one, two in zip(states, after, strict=True))
        moved.append((learner.adapter_files() != files, report["tokens/trained"] > 0))
    assert moved == [(False, False), (False, False), (True, True)]


class Trainer(Process):
    """A process that trains an auxiliary model beside the policy."""

    def train(self, step: int) -> dict[str, float]:
        return self.learner.learn(make_batch(self.config.algorithm, step), step)[1]


@pytest.mark.parametrize("algorithm", [PPO, CLIPO], ids=["ppo", "clipo"])
def test_resuming_is_bit_identical_head_and_critic_included(tmp_path: Path, algorithm: str) -> None:
    unbroken = Trainer(tmp_path / "unbroken", algorithm)
    reports = [unbroken.train(step) for step in (1, 2, 3)]
    first = Trainer(tmp_path, algorithm)
    first.train(1)
    first.train(2)
    first.checkpoints.save(Pipeline(3, (BASE,)))
    second = Trainer(tmp_path, algorithm)
    torch.manual_seed(77)
    with torch.no_grad():
        for parameter in [*second.learner.parameters, *with_weights(second.learner.auxiliary).model.parameters()]:
            parameter.add_(torch.randn(parameter.shape).to(parameter.device))  # all state must come from the checkpoint
    assert second.checkpoints.restore() == Pipeline(3, (BASE,))
    assert timeless(second.train(3)) == timeless(reports[-1])
    assert second.learner.adapter_files() == unbroken.learner.adapter_files()
    restored, expected = (trainer.learner.auxiliary.state_dict() for trainer in (second, unbroken))
    assert restored["model"].keys() == expected["model"].keys()
    for name, value in expected["model"].items():
        assert torch.equal(restored["model"][name], value)
    for index, state in expected["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(restored["optimizer"]["state"][index][name], value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (GRPO, PPO),
        (PPO, CLIPO),
        (CLIPO, CLIPO.replace("}", ", head_size=7}")),
        (PPO, 'algorithm={name="ctdpo", estimator_steps=1}'),
    ],
    ids=["none", "another", "another size", "another's adapter"],
)
def test_a_checkpoint_of_another_auxiliary_model_is_refused(tmp_path: Path, before: str, after: str) -> None:
    Process(tmp_path, before).checkpoints.save(Pipeline(1, (BASE,)))
    with pytest.raises(UserError, match="does not fit this run's lora and algorithm sections"):
        Process(tmp_path, after).checkpoints.restore()


def test_the_critics_explained_variance_rises_within_a_few_updates() -> None:
    config = make_config('algorithm={name="ppo", kl_coef=0.0, critic_lr=5e-3}')
    critic, batch = Learner(config).auxiliary, make_batch(config.algorithm)
    odd_B = torch.tensor([float(sum(ids[:1]) % 2) for ids in batch.response_ids])  # the first token decides
    toy = replace(batch, reward_B=odd_B)
    reports = [critic.update(critic.prepare(toy, step), step) for step in range(16)]
    explained = [report["critic/explained_variance"] for report in reports]
    assert explained[0] == 0.0
    assert min(explained[12:]) > 0.2
    assert reports[-1]["critic/loss"] < 0.6 * reports[0]["critic/loss"]
