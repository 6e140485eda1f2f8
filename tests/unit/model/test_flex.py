"""FlexAttention over trees: its mask, its reference path against the CPU's kernels, and the number of its kernels."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from cepo.model import attention
from cepo.model.tree import BLOCK, TokenTree, token_tree
from tests.unit.model.test_tree import random_rows

CPU = torch.device("cpu")


def random_tree(seed: int) -> TokenTree:
    """Small groups for even seeds; for odd ones up to 20 rows of up to 900 tokens."""
    if seed % 2 == 0:
        return token_tree([p + r for p, r in zip(*random_rows(seed), strict=True)]).padded("cuda")
    rng = random.Random(seed)
    rows = []
    for _ in range(rng.randint(1, 4)):
        question = [rng.randrange(97) for _ in range(rng.randint(10, 400))]
        answers = [[rng.randrange(97) for _ in range(rng.randint(1, 500))] for _ in range(rng.randint(1, 5))]
        rows += [question + answer for answer in answers]
    return token_tree(rows).padded("cuda")


def listed(mask: BlockMask, name: str) -> list[list[int]]:
    """The listed blocks of each row of a table, such as `full_kv`."""
    counts, indices = (getattr(mask, f"{name}_{part}")[0, 0] for part in ("num_blocks", "indices"))
    return [sorted(row[:count].tolist()) for row, count in zip(indices, counts, strict=True)]


@pytest.mark.parametrize("seed", range(10))
def test_the_mask_from_the_nodes_is_the_one_from_all_pairs(seed: int) -> None:
    tree = random_tree(seed)
    stop_N, size = tree.stop_N, len(tree.stop_N)
    wanted = create_block_mask(lambda _b, _h, q, k: (k <= q) & (q < stop_N[k]), None, None, size, size, device="cpu")
    mask = attention.block_mask(tree, CPU)
    assert mask.seq_lengths == wanted.seq_lengths
    assert mask.BLOCK_SIZE == wanted.BLOCK_SIZE == (BLOCK, BLOCK)
    for name in ("kv", "full_kv", "q", "full_q"):
        assert listed(mask, name) == listed(wanted, name)


def test_large_trees_have_full_blocks() -> None:
    tree = token_tree([[*range(90)] * 10 + [i] * 300 for i in (91, 92)]).padded("cuda")
    assert sum(map(len, listed(attention.block_mask(tree, CPU), "full_kv"))) > 20


def test_reference_path_and_kernels_of_the_cpu_agree_forward_and_backward_over_30_trees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reference path computes what compiled FlexAttention computes on a GPU, from the same mask."""
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)  # it refuses gradients on the CPU
    torch.manual_seed(0)
    for seed in range(30):
        tree = random_tree(2 * seed)
        inputs = [torch.randn(1, heads, len(tree.ids_N), 16, requires_grad=True) for heads in (4, 2, 2)]
        weight = torch.randn(1, 4, len(tree.ids_N), 16)

        def passed(plan: attention.Plan, inputs: list[Tensor] = inputs, weight: Tensor = weight) -> list[Tensor]:
            out = attention.attend(inputs[0], inputs[1], inputs[2], plan, 0.25)
            return [out, *torch.autograd.grad((out * weight).sum(), inputs)]

        flexed, called = passed(attention.block_mask(tree, CPU)), passed(attention.attention_calls(tree, 1000))
        for one, other in zip(flexed, called, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_kernel_is_compiled_for_each_padded_size_and_not_for_each_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    attention._compiled_flex.cache_clear()
    trees = [token_tree([[7] * 60 + [i] * length for i in (1, 2)]).padded("cuda") for length in (9, 30, 40, 80)]
    assert [len(tree.ids_N) for tree in trees] == [128, 128, 256, 256]
    try:
        with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
            flexed = attention._compiled_flex()
            for tree in trees:
                query = torch.randn(1, 2, len(tree.ids_N), 16)
                flexed(query, query, query, block_mask=attention.block_mask(tree, CPU), scale=0.25, enable_gqa=False)
    finally:
        attention._compiled_flex.cache_clear()
        torch._dynamo.reset()
    assert counter.frame_count == 2
    padded = {len(token_tree([[0] * tokens]).padded("cuda").ids_N) for tokens in range(1, 65536, 127)}
    assert 2 * len(padded) <= attention.MAX_KERNELS  # with and without gradient
