"""LoRA on the CPU as two matrix products per adapter of the batch and slice of a fused layer.

Written against vLLM 0.32. Its CPU kernels (`vllm.lora.ops.torch_ops`) copy an adapter's weights once for every token of
the batch, which takes most of the sampling time of a small model, and they apply the weights of the last slot to tokens
without an adapter. Without this module sampling is slower, and while every slot holds an adapter, requests for the base
model that share a batch with others get wrong log-probs.

Legend: N tokens of a batch, K tokens of one adapter, I and O input and output size, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

Rows = Tensor | slice
"""Indices of a batch's tokens; a slice if they are all of them, so that no copy is needed."""


def install() -> None:
    """Replaces vLLM's LoRA kernels in this process."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    update_metadata = PunicaWrapperCPU.update_metadata

    def update(wrapper: Any, *args: Any, **named: Any) -> None:
        update_metadata(wrapper, *args, **named)
        wrapper.cepo_rows = rows_by_adapter(wrapper.token_lora_indices)

    def add(wrapper: Any, y_NO: Tensor, x_NI: Tensor, a: Any, b: Any, scale: float, widths: Any, **_: Any) -> None:
        add_linear(y_NO, x_NI, a, b, scale, widths, wrapper.cepo_rows)

    PunicaWrapperCPU.update_metadata = update
    PunicaWrapperCPU.add_lora_linear = add


def rows_by_adapter(index_N: Tensor) -> list[tuple[int, Rows]]:
    """The slots of the adapters in a batch, each with its tokens.

    Example: `[1, -1, 0, 1]` gives `[(0, [2]), (1, [0, 3])]`; a negative slot is a token without an adapter.
    """
    if not len(index_N):
        return []
    first, last = int(index_N.min()), int(index_N.max())
    if first == last:
        return [(first, slice(None))] if first >= 0 else []
    slots = [(slot, (index_N == slot).nonzero().flatten()) for slot in range(max(0, first), last + 1)]
    return [(slot, row_K) for slot, row_K in slots if len(row_K)]


def add_linear(
    y_NO: Tensor,
    x_NI: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scale: float,
    widths: Sequence[int],
    rows: Sequence[tuple[int, Rows]],
) -> None:
    """Adds scale * B A x to y, with the A and B of each token's adapter.

    Args:
        a: for each slice of a fused layer, such as q, k and v: [slots, 1, r, I].
        b: the same: [slots, 1, width, r].
        widths: the number of columns of y in each slice.
        rows: the tokens of each adapter, of `rows_by_adapter`.
    """
    for slot, row_K in rows:
        x_KI, offset = x_NI[row_K].float(), 0
        for down, up, width in zip(a, b, widths, strict=True):
            low_Kr = x_KI @ down[slot, 0].float().T
            place = y_NO[:, offset : offset + width]
            offset += width
            up_rO = up[slot, 0].T
            if isinstance(row_K, slice):
                place.addmm_(low_Kr.to(y_NO.dtype), up_rO, alpha=scale)
            else:
                place[row_K] = place[row_K].addmm(low_Kr.to(y_NO.dtype), up_rO, alpha=scale)
