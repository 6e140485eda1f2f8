"""LoRA on the CPU as two matrix products per adapter in the batch and part of a layer.

vLLM's CPU kernels copy an adapter's weights once for every token of the batch, which takes most of the sampling time
of a small model, and they give tokens without an adapter the weights of the last slot. These do neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

Rows = Tensor | slice


def install() -> None:
    """Puts this in the place of vLLM's way, in this process."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    update_metadata = PunicaWrapperCPU.update_metadata

    def update(wrapper: Any, *args: Any, **named: Any) -> None:
        update_metadata(wrapper, *args, **named)
        wrapper.cepo_parts = parts(wrapper.token_lora_indices)

    def add(wrapper: Any, y_NO: Tensor, x_NI: Tensor, a: Any, b: Any, scale: float, widths: Any, **_: Any) -> None:
        add_linear(y_NO, x_NI, a, b, scale, widths, wrapper.cepo_parts)

    PunicaWrapperCPU.update_metadata = update
    PunicaWrapperCPU.add_lora_linear = add


def parts(index_N: Tensor) -> list[tuple[int, Rows]]:
    """The adapters of a batch with their tokens; a negative index is no adapter."""
    if not len(index_N):
        return []
    first, last = int(index_N.min()), int(index_N.max())
    if first == last:
        return [(first, slice(None))] if first >= 0 else []
    found = [(adapter, (index_N == adapter).nonzero().flatten()) for adapter in range(max(0, first), last + 1)]
    return [(adapter, row_K) for adapter, row_K in found if len(row_K)]


def add_linear(
    y_NO: Tensor,
    x_NI: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    scale: float,
    widths: Sequence[int],
    parts: Sequence[tuple[int, Rows]],
) -> None:
    """Adds scale * B A x of every token's adapter to y.

    Args:
        a: of each part of a fused layer, [adapters, 1, rank, I].
        b: the same, [adapters, 1, width, rank].
        widths: columns of y that each part has.
    """
    for adapter, rows in parts:
        x_KI, offset = x_NI[rows].float(), 0
        for down, up, width in zip(a, b, widths, strict=True):
            low_Kr = x_KI @ down[adapter, 0].float().T
            place = y_NO[:, offset : offset + width]
            offset += width
            up_rO = up[adapter, 0].T
            if isinstance(rows, slice):
                place.addmm_(low_Kr.to(y_NO.dtype), up_rO, alpha=scale)
            else:
                place[rows] = place[rows].addmm(low_Kr.to(y_NO.dtype), up_rO, alpha=scale)
