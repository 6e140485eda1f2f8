"""Memory of one pass of the learner above the weights: the sizing table of docs/memory.md.

The script needs no GPU: `cepo.model.activations` counts each pass on the meta device, in bfloat16 with LoRA of rank 16.
"""

from __future__ import annotations

import sys

from transformers import Qwen3Config

from cepo.model.activations import pass_bytes
from cepo.run.sections import LINEAR_LAYERS

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads: the published config.json of each
    "Qwen3-0.6B": (1024, 3072, 28, 16, 8),
    "Qwen3-1.7B": (2048, 6144, 28, 16, 8),
    "Qwen3-4B": (2560, 9728, 36, 32, 8),
    "Qwen3-8B": (4096, 12288, 36, 32, 8),
}
WORDS = 151_936
PASSES = {
    "16,384 tokens": (16384, {}),
    "16,384 with checkpointing": (16384, {"checkpointing": True}),
    "4,096 with checkpointing": (4096, {"checkpointing": True}),
    "scoring, 32,768 tokens": (32768, {"training": False}),
}
"""The defaults of optim.tokens_per_microbatch and of the teacher's passes."""
GIB = 2**30


def main() -> None:
    """Prints the rows of the sizing table."""
    rows = [f"| model | weights | {' | '.join(PASSES)} |", "|---" * (2 + len(PASSES)) + "|"]
    for name, (hidden, intermediate, layers, heads, key_values) in SHAPES.items():
        config = Qwen3Config(
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_values,
            head_dim=128,
            vocab_size=WORDS,
        )
        attention = 128 * hidden * (2 * heads + 2 * key_values)
        tables = 2 if name == "Qwen3-8B" else 1  # the others tie the head to the embeddings
        figures = [2 * (layers * (attention + 3 * hidden * intermediate) + tables * WORDS * hidden)]
        for tokens, options in PASSES.values():
            figures.append(pass_bytes(config, "bfloat16", LINEAR_LAYERS, 16, tokens, **options))
        rows.append(f"| {name} | {' | '.join(f'{figure / GIB:.1f} GiB' for figure in figures)} |")
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
