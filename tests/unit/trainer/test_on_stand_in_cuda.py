"""Learner, publisher and teacher on a stand-in CUDA device: no operation mixes devices, none waits per token or layer.

`make nightly` runs their whole suites on it (test_suites_on_stand_in_cuda.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from cepo.messages.groups import BASE_POLICY
from cepo.model import attention
from cepo.model.linear import FastLinear
from cepo.model.tree import token_tree
from cepo.teaching.handler import Pair
from cepo.testing import MemoryBus
from services.trainer.learning.batch import pack
from services.trainer.learning.learner import Learner
from services.trainer.publisher import Publisher
from tests.helpers.factories import make_config, make_ragged
from tests.helpers.scorers import RENDERER, make_scorer, random_adapter
from tests.helpers.stand_in_cuda import StandInTensor, Syncs, engines_on_stand_in, stand_in_cuda
from tests.unit.trainer.test_auxiliary import CLIPO, PPO, make_batch

torch.set_num_threads(1)
LENGTHS = [(3, 9, 0, 5), (12, 1, 7, 2), (4, 4, 6, 8)]
CUDA = "engine.device=cuda"
CTDPO = 'algorithm={name="ctdpo", estimator_steps=1}'
MICROBATCH_WAITS = 5
"""The sums of the metrics, the counts, the totals, and the log-probs of the tokens, for each micro-batch."""


@pytest.fixture
def syncs() -> Iterator[Syncs]:
    with stand_in_cuda() as counted:
        yield counted


def tensors_of(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for value in values for tensor in tensors_of(value)]


def test_the_stand_in_refuses_what_a_gpu_refuses_and_counts_what_waits_for_one(syncs: Syncs) -> None:
    x, y = torch.arange(4.0, device="cuda"), torch.ones(4)
    assert (x.device, x.is_cuda, y.to("cuda").device.type) == (torch.device("cuda", 0), True, "cuda")
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        x + y
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    with pytest.raises(NotImplementedError, match="mkldnn"):
        torch.ops.mkldnn._linear_pointwise(x[None], x[None], None, "none", [], "")
    syncs.clear()
    assert (x + torch.tensor(1.0)).cpu().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert float(x.sum()) == 6.0
    assert x[x > 1].cpu().tolist() == [2.0, 3.0]
    assert x[torch.tensor([1])].tolist() == [1.0]
    assert y.pin_memory().to("cuda", non_blocking=True).requires_grad is False
    kinds = [key.partition(" at ")[0] for key in syncs.elements()]
    assert sorted(kinds) == sorted(
        ["copy to the CPU"] * 2 + ["_local_scalar_dense", "boolean index", "index from the CPU", "tolist"]
    )


def test_gradients_stay_on_the_stand_in(syncs: Syncs) -> None:
    x = torch.ones(3, device="cuda").requires_grad_()
    (x * x.detach().cumsum(0)).sum().backward()
    assert isinstance(x.grad, StandInTensor)
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


def test_a_wrong_block_table_gives_a_wrong_result(syncs: Syncs) -> None:
    tree = token_tree([[*range(90), *range(90)], [*range(90), 1, 2]]).padded("cuda")
    plan = attention.plan(tree, torch.device("cuda"), 64)
    query = torch.randn(1, 2, len(tree.ids_N), 16, device="cuda")
    right = attention.attend(query, query, query, plan, 0.25).cpu()
    calls = attention.attention_calls(tree, 0)
    on_cpu = query.cpu()
    torch.testing.assert_close(right, attention.attend(on_cpu, on_cpu, on_cpu, calls, 0.25), rtol=0, atol=1e-5)
    assert isinstance(plan, BlockMask)
    plan.kv_num_blocks = plan.kv_num_blocks.clamp(max=1)
    assert not torch.allclose(attention.attend(query, query, query, plan, 0.25).cpu(), right)


NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize(
    "overrides",
    [
        ("optim.minibatches=2", "optim.tokens_per_microbatch=60"),
        pytest.param((PPO,), marks=NIGHTLY),
        pytest.param((CLIPO,), marks=NIGHTLY),
        pytest.param((CTDPO,), marks=NIGHTLY),
    ],
)
def test_a_learner_learns_as_on_the_cpu_and_its_state_is_on_the_cpu(syncs: Syncs, overrides: tuple[str, ...]) -> None:
    batch = make_batch(make_config(*overrides).algorithm)
    wanted = Learner(make_config("engine.device=cpu", *overrides)).learn(batch, 0)[1]
    learner = Learner(make_config(CUDA, *overrides))
    metrics = learner.learn(batch, 0)[1]
    for key in wanted.keys() - {key for key in wanted if key.startswith("time/")}:
        assert metrics[key] == pytest.approx(wanted[key], rel=1e-3, abs=1e-5), key
    state, files = learner.state_dict(), learner.adapter_files()
    assert len(tensors_of(state)) > 100
    assert not any(isinstance(tensor, StandInTensor) for tensor in tensors_of(state))
    learner.learn(batch, 1)
    assert learner.adapter_files() != files
    learner.load_state_dict(state)
    assert learner.adapter_files() == files
    assert isinstance(learner.parameters[0], StandInTensor)


def test_an_update_waits_for_the_gpu_as_often_for_more_tokens_and_for_more_layers(syncs: Syncs) -> None:
    learner, config = Learner(make_config(CUDA)), make_config(CUDA)
    decoder = learner.peft.get_base_model().model
    counts = []
    for layers, lengths in ((4, LENGTHS), (4, [(30, 90, 10, 50), (120, 10, 70, 20)]), (2, LENGTHS)):
        batch = pack(make_ragged(lengths))
        decoder.layers = decoder.layers[:layers]
        adv_BT = config.algorithm.advantages(batch, 0).adv_BT
        syncs.clear()
        with mock.patch.object(FastLinear, "__enter__", side_effect=AssertionError("for the CPU alone")):
            learner.update(batch, adv_BT, config.algorithm, 0)
        counts.append(syncs.total())
    assert counts == [MICROBATCH_WAITS + 1] * 3  # and the gradient's norm


def test_publishing_waits_for_a_few_copies(syncs: Syncs, tmp_path: Path) -> None:
    learner = Learner(make_config(CUDA))
    publisher = Publisher(tmp_path, learner, MemoryBus(), RENDERER.canary_ids(16), RENDERER.sha256, "float32")
    syncs.clear()
    policy = publisher._write(1, "v000001")
    publisher._expect_canary(policy)
    assert publisher.intact(policy)
    assert syncs.total() <= 4, syncs


async def test_a_teacher_scores_as_on_the_cpu_and_waits_once_a_pass(tmp_path: Path) -> None:
    policy, files = random_adapter(tmp_path / "made", seed=1)
    pairs = [Pair((5, 6, 7), (8, 9, 10)), Pair((5, 6, 7, 11), (8, 9)), Pair((5, 6), (), base_share=0.25)]
    mixed = [Pair((5, 6, 7), (8, 9, 10), base_share=0.5), *pairs]

    async def scored(name: str) -> tuple[Any, ...]:
        scorer = make_scorer(tmp_path / name, {policy: files})
        proof = await scorer.load(policy)
        likeliest = await scorer.likeliest(pairs, 3, 1.0, policy)
        ids = [row.ids for row in likeliest.values]
        given = await scorer.gather(pairs, ids, 1.0, policy)
        logps = [await scorer.score(each, 0.7, of) for each in (pairs, mixed) for of in (policy, BASE_POLICY)]
        pooled = await scorer.pool(pairs, policy)
        return (
            tuple(proof.canary_logps),
            ids,
            *(value for each in logps for value in each.values),
            *pooled.values,
            *(
                torch.frombuffer(bytearray(row.logps), dtype=torch.float32).tolist()
                for row in given.values
                if row.logps
            ),
        )

    wanted = await scored("cpu")
    with engines_on_stand_in() as syncs:
        found = await scored("cuda")
        assert found[1] == wanted[1]
        for one, other in zip(found, wanted, strict=True):
            if other is not wanted[1]:
                assert one == pytest.approx(other, abs=1e-4)
        scorer = make_scorer(tmp_path / "cuda", {policy: files})
        await scorer.load(policy)
        waits = []
        for length in (3, 60):
            syncs.clear()
            await scorer.score([Pair((5, 6, 7), tuple(range(8, 8 + length)))], 1.0, policy)
            waits.append(syncs.total())
        assert waits == [1, 1]
