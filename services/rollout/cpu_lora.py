"""LoRA on the CPU as one matrix product per adapter in the batch.

vLLM's CPU kernels copy an adapter's weights once for every token of the batch, which takes most of the sampling time
of a small model, and they give tokens without an adapter the weights of the last slot. These do neither.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def install() -> None:
    """Puts these kernels in the place of vLLM's, in this process."""
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    modules: tuple[Any, ...] = (lora_ops, torch_ops, punica_cpu)
    for module in modules:  # each holds the names it imported
        module.bgmv_shrink = bgmv_shrink
        module.bgmv_expand = bgmv_expand
        module.bgmv_expand_slice = bgmv_expand_slice


def products(input_NI: Tensor, weight_LOI: Tensor, index_N: Tensor, dtype: torch.dtype) -> Tensor:
    """input @ weight[index].T for every token, 0 where the index is negative: [N, O]."""
    weight_LOI = weight_LOI.squeeze(1) if weight_LOI.dim() == 4 else weight_LOI
    input_NI = input_NI.to(dtype)
    first, last = int(index_N.min()), int(index_N.max())
    if first == last >= 0:
        return input_NI @ weight_LOI[first].to(dtype).T
    product_NO = input_NI.new_zeros(len(input_NI), weight_LOI.shape[1])
    for adapter in range(max(0, first), last + 1):
        row_K = (index_N == adapter).nonzero().flatten()
        if len(row_K):
            product_NO[row_K] = input_NI[row_K] @ weight_LOI[adapter].to(dtype).T
    return product_NO


def bgmv_shrink(inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, scaling: float = 1.0) -> None:
    """Writes scaling * A x into the first columns of the output."""
    product = products(inputs, weights, indices, output.dtype)
    output[:, : product.shape[1]] = scaling * product


def bgmv_expand(inputs: Tensor, weights: Tensor, output: Tensor, indices: Tensor, add_inputs: bool = True) -> None:
    """Adds B x to the first columns of the output, or writes it there."""
    bgmv_expand_slice(inputs, weights, output, indices, 0, min(weights.shape[-2], output.shape[1]), add_inputs)


def bgmv_expand_slice(
    inputs: Tensor,
    weights: Tensor,
    output: Tensor,
    indices: Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """Adds B x to a slice of the output's columns, or writes it there."""
    product = products(inputs, weights, indices, output.dtype)[: len(output), :slice_size]
    place = output[:, slice_offset : slice_offset + slice_size]
    if add_inputs:
        place += product
    else:
        place.copy_(product)
