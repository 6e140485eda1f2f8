"""The CPU kernels against the products they stand for, and against vLLM's own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from services.rollout.cpu_lora import bgmv_expand, bgmv_expand_slice, bgmv_shrink, products

INDICES = [[0, 0, 0, 0, 0], [1, 0, 2, 1, 1], [-1, 0, -1, 2, 0], [-1, -1, -1, -1, -1]]


def sample(indices: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(len(indices), 6), torch.randn(3, 1, 4, 6), torch.tensor(indices)


@pytest.mark.parametrize("indices", INDICES)
def test_every_token_meets_its_own_adapter_and_none_meets_no_weights(indices: list[int]) -> None:
    inputs, weights, index = sample(indices)
    found = products(inputs, weights, index, torch.float32)
    for row, adapter in enumerate(indices):
        wanted = weights[adapter, 0] @ inputs[row] if adapter >= 0 else torch.zeros(4)
        torch.testing.assert_close(found[row], wanted)


def test_shrink_scales_and_leaves_later_columns_alone() -> None:
    inputs, weights, index = sample([0, 2, 1])
    output = torch.full((3, 5), 7.0)
    bgmv_shrink(inputs, weights, output, index, 0.5)
    torch.testing.assert_close(output[:, :4], 0.5 * products(inputs, weights, index, torch.float32))
    assert (output[:, 4] == 7).all()


@pytest.mark.parametrize("add", [True, False])
def test_expand_adds_to_its_slice_or_overwrites_it(add: bool) -> None:
    inputs, weights, index = sample([0, 2, 1])
    output = torch.ones(3, 9)
    bgmv_expand_slice(inputs, weights, output, index, 2, 4, add)
    torch.testing.assert_close(output[:, 2:6], products(inputs, weights, index, torch.float32) + (1.0 if add else 0.0))
    assert (output[:, :2] == 1).all()
    assert (output[:, 6:] == 1).all()
    narrow = torch.zeros(3, 3)
    bgmv_expand(inputs, weights, narrow, index, add)
    torch.testing.assert_close(narrow, products(inputs, weights, index, torch.float32)[:, :3])


def test_they_equal_the_kernels_they_replace() -> None:
    script = """
import torch
from vllm.lora.ops.torch_ops import lora_ops
from services.rollout import cpu_lora
theirs = {name: getattr(lora_ops, name) for name in ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")}
cpu_lora.install()
assert lora_ops.bgmv_shrink is cpu_lora.bgmv_shrink
torch.manual_seed(0)
inputs, weights, index = torch.randn(7, 6), torch.randn(3, 1, 4, 6), torch.tensor([0, 2, 1, 1, 0, 2, 2])
for name, more in (("bgmv_shrink", (0.5,)), ("bgmv_expand", (True,)), ("bgmv_expand_slice", (1, 4, True))):
    ours, wanted = torch.ones(7, 6), torch.ones(7, 6)
    getattr(cpu_lora, name)(inputs, weights, ours, index, *more)
    theirs[name](inputs, weights, wanted, index, *more)
    torch.testing.assert_close(ours, wanted)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
