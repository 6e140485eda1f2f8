"""LoRA on the CPU against plain matrix products, and against vLLM's own kernels."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from services.rollout.vllm_patches.cpu_lora import add_linear, rows_by_adapter

INDICES = [[0, 0, 0, 0, 0], [1, 0, 2, 1, 1], [-1, 0, -1, 2, 0], [-1, -1, -1, -1, -1], []]
WIDTHS = (4, 2)


@pytest.mark.parametrize("indices", INDICES)
def test_every_token_meets_its_own_adapter_and_none_meets_no_weights(indices: list[int]) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(len(indices), 6), torch.randn(len(indices), sum(WIDTHS))
    a, b = [torch.randn(3, 1, 2, 6) for _ in WIDTHS], [torch.randn(3, 1, width, 2) for width in WIDTHS]
    wanted = y.clone()
    for row, adapter in enumerate(indices):
        if adapter >= 0:
            update = [up[adapter, 0] @ down[adapter, 0] @ x[row] for down, up in zip(a, b, strict=True)]
            wanted[row] += 0.5 * torch.cat(update)
    add_linear(y, x, a, b, 0.5, WIDTHS, rows_by_adapter(torch.tensor(indices, dtype=torch.long)))
    torch.testing.assert_close(y, wanted)


def test_a_batch_of_one_adapter_is_not_copied() -> None:
    assert rows_by_adapter(torch.tensor([2, 2, 2])) == [(2, slice(None))]


def test_the_tokens_of_each_adapter_are_found() -> None:
    slots = rows_by_adapter(torch.tensor([1, -1, 0, 1]))
    assert [(slot, list(rows)) for slot, rows in slots if isinstance(rows, torch.Tensor)] == [(0, [2]), (1, [0, 3])]


SCRIPT = """
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from services.rollout.vllm_patches import cpu_lora
def ran(ids, prefill):
    torch.manual_seed(0)
    wrapper = PunicaWrapperCPU(64, 8, device="cpu")
    wrapper.update_metadata(LoRAMapping(ids, ids, is_prefill=prefill), [5, 6, 7], 3, 32)
    x, y = torch.randn(len(ids), 6), torch.randn(len(ids), 6)
    a, b = [torch.randn(3, 1, 2, 6) for _ in range(2)], [torch.randn(3, 1, width, 2) for width in (4, 2)]
    wrapper.add_lora_linear(y, x, tuple(a), tuple(b), 0.5, (4, 2))
    return y
cases = [(ids, prefill) for prefill in (True, False) for ids in ((5, 5, 5), (7, 7, 6, 5, 5, 6))]
theirs = [ran(*case) for case in cases]
cpu_lora.install()
for case, wanted in zip(cases, theirs):
    torch.testing.assert_close(ran(*case), wanted)
"""


def test_it_equals_the_kernels_that_it_replaces_for_prompts_and_for_single_tokens() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
