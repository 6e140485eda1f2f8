"""Linear layers on oneDNN: equal to PyTorch's own in float32, and PyTorch's own for every other device and dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cepo.model.linear import FastLinear, product

torch.set_num_threads(1)


def outputs_and_gradients(layer: torch.nn.Linear, input_ND: Tensor) -> list[Tensor]:
    """The output, then the gradients of the input, the weight and the bias."""
    out_NO = layer(input_ND)
    return [out_NO, *torch.autograd.grad(out_NO.float().square().sum(), [input_ND, *layer.parameters()])]


def test_fast_products_are_those_of_a_linear_layer() -> None:
    torch.manual_seed(0)
    for shape, bias in (((2, 9, 12), True), ((7, 12), False), ((1, 0, 12), True)):
        layer, input_ND = torch.nn.Linear(12, 5, bias=bias), torch.randn(shape, requires_grad=True)
        torch.testing.assert_close(product(input_ND.detach(), layer.weight, layer.bias), layer(input_ND))
        wanted = outputs_and_gradients(layer, input_ND)
        with FastLinear():
            fast = outputs_and_gradients(layer, input_ND)
        for ours, pytorchs in zip(fast, wanted, strict=True):
            torch.testing.assert_close(ours, pytorchs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_have_the_bits_of_pytorch(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 128, bias=bias).to(dtype)
    input_ND = torch.randn(128, 256).to(dtype).requires_grad_(True)
    wanted = outputs_and_gradients(layer, input_ND)
    with FastLinear():
        fast = outputs_and_gradients(layer, input_ND)
    assert all(torch.equal(ours, pytorchs) for ours, pytorchs in zip(fast, wanted, strict=True))
    with torch.no_grad(), FastLinear():
        assert torch.equal(layer(input_ND), wanted[0])
        assert torch.equal(product(input_ND, layer.weight, layer.bias), wanted[0])


def test_other_devices_and_a_mix_of_dtypes_never_reach_onednn() -> None:
    """A meta tensor stands for any device that is not the CPU: oneDNN would raise for it."""
    layer = torch.nn.Linear(12, 5, device="meta")
    with FastLinear():
        assert layer(torch.ones(3, 12, device="meta")).device.type == "meta"
        with pytest.raises(RuntimeError, match="same dtype"):
            torch.nn.functional.linear(torch.ones(3, 12), torch.ones(5, 12, dtype=torch.bfloat16))
