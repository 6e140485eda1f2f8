"""Memory that one forward pass of the learner keeps for its backward pass, per token and layer: the sizing table.

The script needs no GPU. It counts the storages that autograd saves for one and for two decoder layers of a model's
published shape, in bfloat16 with LoRA of rank 16; the difference is one layer. A GPU keeps the same tensors, because
FlexAttention saves query, key, value, output and log-sum-exp like the CPU kernel. Workspaces and fragmentation are not
counted.
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
TOKENS = 16_384
"""The default of optim.tokens_per_microbatch."""
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
        "| model | weights | KiB per token and layer | with checkpointing | 16,384 tokens | with checkpointing |",
        "|---|---|---|---|---|---|",
    ]
    for name, shape in SHAPES.items():
        hidden, intermediate, layers, heads, key_values = shape
        attention = 128 * hidden * (2 * heads + 2 * key_values)
        tables = 2 if name == "Qwen3-8B" else 1  # the others tie the head to the embeddings
        weights = 2 * (layers * (attention + 3 * hidden * intermediate) + tables * WORDS * hidden) / GIB
        kept, light = (per_token_and_layer(shape, checkpointing=flag) for flag in (False, True))
        plain = TOKENS * 1024 * kept * layers / GIB
        recomputing = TOKENS * 1024 * (light * layers + kept) / GIB  # one layer is recomputed at a time
        row = (name, f"{weights:.1f} GiB", f"{kept:.0f}", f"{light:.0f}", f"{plain:.1f} GiB", f"{recomputing:.1f} GiB")
        rows.append(f"| {' | '.join(row)} |")
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
