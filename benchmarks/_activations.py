"""Memory that one forward pass of the learner keeps for its backward pass, per token and layer: the sizing table.

It needs no GPU: tensors that autograd saves are counted by their storages, for one and for two decoder layers of a model's
published shape in bfloat16 with LoRA of rank 16; the difference is one layer. A GPU keeps the same tensors, as FlexAttention
saves query, key, value, output and log-sum-exp like the CPU kernel; workspaces and fragmentation come on top.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks._shapes import random_group
from cepo.model.forward import checkpoint_layers, response_states
from cepo.model.lora import make_lean
from cepo.run.config import LINEAR_LAYERS

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads: the published config.json of each
    "Qwen3-0.6B": (1024, 3072, 28, 16, 8),
    "Qwen3-1.7B": (2048, 6144, 28, 16, 8),
    "Qwen3-4B": (2560, 9728, 36, 32, 8),
    "Qwen3-8B": (4096, 12288, 36, 32, 8),
}
WORDS = 151_936
LENGTHS = (128, 16, 48)
"""Tokens of the question, of a hint and of each of eight responses: 504 distinct tokens."""
GIB = 2**30


def saved_bytes(shape: tuple[int, ...], layers: int, *, checkpointing: bool) -> tuple[int, int]:
    """Bytes that a pass keeps, weights left out, and its distinct tokens."""
    hidden, intermediate, _, heads, key_values = shape
    config = Qwen3Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_values,
        head_dim=128,
        vocab_size=1024,
    )
    model: Any = Qwen3ForCausalLM._from_config(config, dtype=torch.bfloat16).requires_grad_(False)
    peft = get_peft_model(model, LoraConfig(r=16, target_modules=list(LINEAR_LAYERS)))
    make_lean(peft)
    if checkpointing:
        checkpoint_layers(model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in peft.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    prompts, responses = random_group(1024, LENGTHS).rows("plain")
    with saved_tensors_hooks(note, lambda tensor: tensor):
        states = response_states(model, prompts, responses, 1.0)
    assert states.hidden_ND.requires_grad
    return sum(kept.values()), len(prompts[0]) + sum(len(response) - 1 for response in responses)


def per_token_and_layer(shape: tuple[int, ...], *, checkpointing: bool) -> float:
    """KiB of one token in one layer."""
    (one, tokens), (two, _) = (saved_bytes(shape, layers, checkpointing=checkpointing) for layers in (1, 2))
    return (two - one) / tokens / 1024


def main() -> None:
    """Prints the rows of the sizing table in docs/memory.md."""
    torch.manual_seed(0)
    rows = [
        "| model | weights | KiB per token and layer | the same with checkpointing | 16,384 tokens | the same with checkpointing |",
        "|---|---|---|---|---|---|",
    ]
    for name, shape in SHAPES.items():
        hidden, intermediate, layers, heads, key_values = shape
        attention = 128 * hidden * (2 * heads + 2 * key_values)
        weights = 2 * (layers * (attention + 3 * hidden * intermediate) + (2 if name == "Qwen3-8B" else 1) * WORDS * hidden)
        kept, light = (per_token_and_layer(shape, checkpointing=flag) for flag in (False, True))
        whole, again = (16_384 * 1024 * (each * layers) / GIB for each in (kept, light))
        again += 16_384 * 1024 * kept / GIB  # the layer that is recomputed
        rows.append(f"| {name} | {weights / GIB:.1f} GiB | {kept:.0f} | {light:.0f} | {whole:.1f} GiB | {again:.1f} GiB |")
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
