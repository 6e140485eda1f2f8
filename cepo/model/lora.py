"""LoRA layers that add to the output of the base layer in place, where PEFT allocates three more tensors of its size.

Parameters, names and files stay PEFT's; only the computation differs. PEFT keeps adapters in float32 beside a base in
bfloat16, and casts each input to float32, a copy that lives until the backward pass. Here the factors A and B are cast
instead, as vLLM does; their gradients are accumulated in float32.

Legend: N tokens, I and O input and output size, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from cepo.model.linear import product, product_float32


def make_lean(model: nn.Module) -> None:
    """Changes every plain PEFT LoRA layer of a model to a LeanLinear, in place."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = LeanLinear


class LeanLinear(Linear):
    """PEFT's LoRA layer. With one plain adapter active, it computes y = x W + b + scale (x A) B in one pass over y.

    Every other case is left to PEFT: several adapters, merged or disabled adapters, dropout, DoRA, biases in the
    adapter, an adapter of lower precision than the base layer, an input of another dtype than the base layer, and a
    base layer with a gradient.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output: [..., I] to [..., O]."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        plain = len(active) == 1 and self._plain(active[0], x.dtype)
        if args or kwargs or self.disable_adapters or self.merged or not plain:
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        base, a, b = self.get_base_layer(), self.lora_A[active[0]].weight, self.lora_B[active[0]].weight
        operands = (x, base.weight, base.bias, a, b, self.scaling[active[0]])
        return _Lean.apply(*operands) if torch.is_grad_enabled() else _forward(*operands)[0]

    def _plain(self, name: str, dtype: torch.dtype) -> bool:
        base, down, up = self.get_base_layer(), self.lora_A[name], self.lora_B[name]
        return (
            type(base) is type(down) is type(up) is nn.Linear
            and up.bias is None
            and isinstance(self.lora_dropout[name], nn.Identity)
            and name not in self.lora_variant
            and base.weight.dtype == dtype
            and down.weight.dtype in (dtype, torch.float32)
            and not base.weight.requires_grad
        )


def _forward(
    x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_rI: Tensor, b_Or: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The layer's output, and x A."""
    low = product(x, a_rI.to(x.dtype))
    out = product(x, weight_OI, bias_O)
    out.flatten(0, -2).addmm_(low.flatten(0, -2), b_Or.to(x.dtype).T, alpha=scale)
    return out, low


class _Lean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_rI: Tensor, b_Or: Tensor, scale: float
    ) -> Tensor:
        out, low = _forward(x, weight_OI, bias_O, a_rI, b_Or, scale)
        ctx.save_for_backward(x, weight_OI, a_rI, b_Or, low)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI, a_rI, b_Or, low = ctx.saved_tensors
        grad_NO, x_NI, low_Nr = grad.flatten(0, -2), x.flatten(0, -2), low.flatten(0, -2)
        low_grad_Nr = product(grad_NO, b_Or.to(grad.dtype).T).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = product(grad, weight_OI.T)
            grad_x.flatten(0, -2).addmm_(low_grad_Nr, a_rI.to(grad.dtype))
        multiply = product if a_rI.dtype == grad.dtype else product_float32
        grad_a_rI = multiply(low_grad_Nr.T, x_NI.T)
        grad_b_rO = multiply(low_Nr.T, grad_NO.T)  # the r rows first: the transposed product is several times slower
        return grad_x, None, None, grad_a_rI, grad_b_rO.T * ctx.scale, None
