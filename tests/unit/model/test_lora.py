"""LeanLinear against PEFT's LoRA layer: outputs, gradients, and each case that is left to PEFT."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from cepo.model.lora import LeanLinear, make_lean


class Two(nn.Module):
    """An adapted layer with a bias, and a plain layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 7)
        self.outer = nn.Linear(7, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).tanh())


def adapted(**options: Any) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(Two(), LoraConfig(r=3, lora_alpha=6, target_modules=["inner"], **options))
    model.add_adapter("other", LoraConfig(r=2, lora_alpha=2, target_modules=["inner"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def gradients(model: Any, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of each trained parameter."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    out = model(x)
    return [out, *torch.autograd.grad(out.square().sum(), [x, *trained])]


@pytest.mark.parametrize("shape", [(4, 12), (2, 3, 12), (1, 0, 12)])
@pytest.mark.parametrize("name", ["default", "other"])
def test_outputs_and_gradients_are_those_of_peft(shape: tuple[int, ...], name: str) -> None:
    plain = adapted()
    lean = deepcopy(plain)
    make_lean(lean)
    assert type(lean.base_model.model.inner) is LeanLinear
    for model in (plain, lean):
        model.set_adapter(name)
    x = torch.randn(shape, requires_grad=True)
    for one, other in zip(gradients(lean, x), gradients(plain, x), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(lean(x), plain(x))


def test_an_input_without_a_gradient_gets_none() -> None:
    lean = adapted()
    make_lean(lean)
    x = torch.randn(4, 12)
    lean(x).sum().backward()
    assert x.grad is None
    assert all(p.grad is not None for p in lean.parameters() if p.requires_grad)


def test_layers_that_are_not_plain_are_left_to_peft() -> None:
    x = torch.randn(4, 12)
    for options in ({}, {"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}):
        plain = adapted(**options)
        lean = deepcopy(plain)
        make_lean(lean)
        torch.manual_seed(1)
        wanted = plain(x)
        torch.manual_seed(1)
        torch.testing.assert_close(lean(x), wanted)
        with plain.disable_adapter(), lean.disable_adapter():
            torch.testing.assert_close(lean(x), plain(x))
        plain.merge_adapter()
        lean.merge_adapter()
        torch.testing.assert_close(lean(x), plain(x))


def test_a_float32_adapter_on_a_bfloat16_base_keeps_no_float32_copy_and_has_float32_gradients() -> None:
    plain = adapted()
    plain.base_model.model.to(torch.bfloat16)
    for name, parameter in plain.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    lean = deepcopy(plain)
    make_lean(lean)
    x = torch.randn(16, 12, dtype=torch.bfloat16, requires_grad=True)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lean.base_model.model.inner(x)
    assert {tensor.dtype for tensor in kept if tensor.shape[0] == 16} == {torch.bfloat16}
    for one, other in zip(gradients(lean, x), gradients(plain, x), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(
            one.float(), other.float(), rtol=0.02, atol=0.02 * float(other.detach().float().abs().max())
        )


def test_an_adapter_of_lower_precision_or_an_input_of_another_is_left_to_peft() -> None:
    lean = adapted()
    make_lean(lean)
    layer = lean.base_model.model.inner
    layer.lora_A.to(torch.bfloat16)
    layer.lora_B.to(torch.bfloat16)
    assert not layer._plain("default", torch.float32)
    assert not adapted_lean()._plain("default", torch.bfloat16)
    assert layer(torch.ones(3, 12)).dtype == torch.float32


def adapted_lean() -> Any:
    lean = adapted()
    make_lean(lean)
    return lean.base_model.model.inner
