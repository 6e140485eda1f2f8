"""Float32 matrix products on the CPU through oneDNN, which PyTorch itself uses only for lower precisions.

PyTorch sends float32 products to MKL, which runs at about half the speed on AMD processors (benchmarks/NOTES.md).
Every other device and dtype keeps PyTorch's own `F.linear`, bit for bit.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_onednn = torch.ops.mkldnn._linear_pointwise if torch.backends.mkldnn.is_available() else None


def product(input_ND: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias, as `F.linear`. Has no gradient: call it under no_grad or in an autograd function.

    Args:
        input_ND: [..., D]; any number of leading dimensions.
        weight_OD: [O, D].
        bias_O: [O].

    Returns:
        [..., O].
    """
    if _onednn is None or not _takes(input_ND, weight_OD):
        return F.linear(input_ND, weight_OD, bias_O)
    return _onednn(input_ND, weight_OD, bias_O, "none", [], "")


def product_float32(input_ND: Tensor, weight_OD: Tensor) -> Tensor:
    """input @ weight.T of operands in lower precision, accumulated and returned in float32: [N, O]. Has no gradient."""
    if input_ND.device.type == "cpu":  # PyTorch has the kernel with another output type on GPUs alone
        return product(input_ND.float(), weight_OD.float())
    return torch.mm(input_ND, weight_OD.T, out_dtype=torch.float32)


def _takes(input_ND: Tensor, weight_OD: Tensor) -> bool:
    """Whether oneDNN computes this product: both operands are float32 on the CPU, and the input is not empty."""
    operands = (input_ND, weight_OD)
    return input_ND.numel() > 0 and all(x.dtype == torch.float32 and x.device.type == "cpu" for x in operands)


class FastLinear(TorchFunctionMode):
    """Context in which `F.linear` on CPU float32 tensors runs on oneDNN, forward and backward.

    A call with any other device or dtype, with an empty input, or with keyword arguments is left to PyTorch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and _onednn is not None and _takes(*args[:2]):
            return _Linear.apply(*args) if torch.is_grad_enabled() else product(*args)
        return func(*args, **(kwargs or {}))


def fast_linear(device: torch.device) -> AbstractContextManager[Any]:
    """FastLinear on the CPU. On a GPU nothing: the mode would pass every function call of a model through Python."""
    return FastLinear() if device.type == "cpu" else nullcontext()


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
