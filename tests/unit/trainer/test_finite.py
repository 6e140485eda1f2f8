"""Numbers that are not finite never reach the weights, an adapter or a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from cepo.algo.auxiliary import TrainedAuxiliaryModel
from cepo.errors import UserError
from cepo.messages.groups import BASE_POLICY
from services.trainer.finite import MAX_SKIPPED, diverged, first_not_finite
from services.trainer.learning.batch import pack
from services.trainer.pipeline import Pipeline
from tests.helpers.factories import make_ragged
from tests.unit.trainer.test_checkpoint import Process

torch.set_num_threads(1)


def update(process: Process, step: int, broken: float | None = None, row: int = 0) -> dict[str, float]:
    """One update, with the engine's first log-prob of a row replaced."""
    batch = pack(make_ragged([(4, 6, 2), (3, 5, 0)], seed=step))
    adv_BT = process.config.algorithm.advantages(batch, step).adv_BT
    if broken is not None:
        adv_BT[row, 0] = broken
    return process.learner.update(batch, adv_BT, process.config.algorithm, step)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_an_update_with_a_gradient_that_is_not_finite_is_skipped_and_counted(tmp_path: Path, broken: float) -> None:
    process, twin = (Process(tmp_path / name, "optim.minibatches=1") for name in ("one", "two"))
    for each in (process, twin):
        update(each, 1)
    before = process.learner.state_dict()
    metrics = update(process, 2, broken)
    after = process.learner.state_dict()
    assert (metrics["updates/skipped"], metrics["grad_norm"], process.learner.skipped_in_a_row) == (1.0, 0.0, 1)
    assert all(torch.equal(value, after["adapter"][name]) for name, value in before["adapter"].items())
    assert first_not_finite(after) == ""
    metrics, wanted = update(process, 3), update(twin, 3)
    assert (metrics["updates/skipped"], process.learner.skipped_in_a_row) == (0.0, 0)
    assert process.learner.adapter_files() == twin.learner.adapter_files(), "a skipped update leaves no trace"
    assert metrics["grad_norm"] == wanted["grad_norm"]


def test_the_other_mini_batches_of_the_step_are_trained_on(tmp_path: Path) -> None:
    process = Process(tmp_path, "optim.minibatches=2")
    metrics = update(process, 1, math.nan)
    assert metrics["updates/skipped"] == 1.0
    assert metrics["grad_norm"] > 0
    assert first_not_finite(process.learner.state_dict()) == ""


async def test_a_policy_that_is_not_finite_is_neither_published_nor_saved(tmp_path: Path) -> None:
    process = Process(tmp_path)
    with torch.no_grad():
        process.learner.parameters[-1].view(-1)[0] = math.nan
    with pytest.raises(UserError, match=r"training has diverged: the adapter of version 1 is not finite .*lora_B"):
        await process.publisher.publish(1)
    with pytest.raises(
        UserError, match=r"training has diverged: adapter\..*lora_B.* is not finite after step 0\. Lower"
    ):
        process.checkpoints.save(Pipeline.start(0).advanced(BASE_POLICY, BASE_POLICY))
    assert not list((tmp_path / "adapters").glob("*"))
    assert not list((tmp_path / "checkpoints").glob("*"))


async def test_a_policy_whose_log_probs_are_not_finite_is_withdrawn(tmp_path: Path) -> None:
    process = Process(tmp_path, "optim.lr=1e30", "optim.warmup_steps=0", "optim.schedule=constant")
    update(process, 1)
    assert first_not_finite(process.learner.adapter()) == ""
    with pytest.raises(UserError) as error:
        await process.publisher.publish(1)
    assert str(error.value) == (
        "training has diverged: under version 1 log-probs are nan. Lower optim.lr or optim.max_grad_norm, and resume "
        f"from the newest checkpoint with: cepo resume {tmp_path} --set optim.lr=RATE --allow-change optim.lr"
    )
    assert not list((tmp_path / "adapters").glob("*"))


@given(
    st.recursive(
        st.floats(width=32).map(torch.tensor) | st.integers(0, 9).map(torch.tensor) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
        max_leaves=8,
    )
)
def test_the_first_number_that_is_not_finite_is_found_anywhere(state: Any) -> None:
    def tensors(node: Any) -> list[torch.Tensor]:
        if isinstance(node, torch.Tensor):
            return [node]
        inner = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
        return [tensor for each in inner for tensor in tensors(each)]

    broken = any(not math.isfinite(float(tensor)) for tensor in tensors(state))
    assert bool(first_not_finite(state, "state")) == broken


def test_the_advice_quotes_the_folder() -> None:
    assert "cepo resume '/runs/my run' --set" in str(diverged("it is", Path("/runs/my run")))
    assert MAX_SKIPPED == 3


def test_an_auxiliary_model_skips_an_update_that_is_not_finite(tmp_path: Path) -> None:
    process = Process(tmp_path, 'algorithm={name="ppo"}', "loop.steps=40")
    auxiliary = process.learner.auxiliary
    assert isinstance(auxiliary, TrainedAuxiliaryModel)
    before = [parameter.detach().clone() for parameter in auxiliary.model.parameters()]
    for broken in (math.nan, math.inf, 0.0):
        for parameter in auxiliary.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        next(iter(auxiliary.model.parameters())).grad.view(-1)[0] = broken
        auxiliary.take_step()
        changed = any(not torch.equal(*pair) for pair in zip(before, auxiliary.model.parameters(), strict=True))
        assert changed == (broken == 0.0)
    assert auxiliary.skipped == 2
