"""Matrix products in float32 on the CPU by oneDNN, which PyTorch itself asks for lower precisions alone.

Its other library, MKL, runs at about half the speed on AMD processors (docs/performance.md). Everything else, and every
other device, takes PyTorch's own way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_onednn = torch.ops.mkldnn._linear_pointwise if torch.backends.mkldnn.is_available() else None


def product(input_ND: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias, without a gradient."""
    if _onednn is None or input_ND.dtype != torch.float32 or input_ND.device.type != "cpu" or not input_ND.numel():
        found = input_ND @ weight_OD.T
        return found if bias_O is None else found + bias_O
    return _onednn(input_ND, weight_OD, bias_O, "none", [], "")


class FastLinear(TorchFunctionMode):
    """While it is entered, linear layers multiply by `product`, forward and backward."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear and not kwargs:
            return _Linear.apply(*args) if torch.is_grad_enabled() else product(*args)
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_ND: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(input_ND if ctx.needs_input_grad[1] else None, weight_OD)
        return product(input_ND, weight_OD, bias_O)

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        input_ND, weight_OD = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = (*ctx.needs_input_grad, False)[:3]
        return (
            product(grad_NO, weight_OD.T) if needs_input else None,
            grad_NO.flatten(0, -2).T @ input_ND.flatten(0, -2) if needs_weight else None,
            grad_NO.flatten(0, -2).sum(0) if needs_bias else None,
        )[: len(ctx.needs_input_grad)]
