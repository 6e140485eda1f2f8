"""Models of real sizes with random weights, from their sizes alone, and how much of a device a pass uses.

Sizes are those of the models' config.json on Hugging Face; of Qwen3-VL-2B the language part. Peak rates are NVIDIA's
data sheets': dense bfloat16, no sparsity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import _report
from benchmarks._shapes import RESPONSE, random_qwen3
from cepo.tree import token_tree

SHAPES: dict[str, dict[str, int]] = {
    "qwen3-0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "qwen3-4b": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "qwen3-vl-2b": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
}
"""`tiny` tries the code out where there is no GPU."""
VOCABULARY = dict.fromkeys(SHAPES, 151_936) | {"tiny": 512}
PEAK_TERAFLOPS = {"H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A6000": 154.8}


def random_model(shape: str) -> Any:
    """On the GPU, or on the CPU where there is none."""
    return random_qwen3(VOCABULARY[shape], SHAPES[shape], "cuda" if torch.cuda.is_available() else "cpu")


def described() -> str:
    """What the figures were taken on, and in which precision."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, bfloat16, torch {torch.__version__}"
    return f"CPU, {torch.get_num_threads()} threads, float32, torch {torch.__version__}"


def used(
    model: Any, rows: Sequence[Sequence[int]], seconds: float, *, tree: bool, backward: bool = False
) -> dict[str, float | None]:
    """Rates of a pass over these rows, each of which ends in a response.

    Tokens are counted row by row, as if nothing were shared, so that both ways do the same; FLOPs are those that the
    way itself needs: a tree has each shared token once. The backward pass of a frozen base under LoRA costs as much as
    the forward pass. MFU is the share of the GPU's peak; None where the peak is not known.
    """
    flops = _forward_flops(model, rows, tree=tree) * (2 if backward else 1)
    peak = _peak_flops()
    return {
        "tokens_per_second": round(sum(map(len, rows)) / seconds, 1),
        "teraflops_per_second": round(flops / seconds / 1e12, 3),
        "mfu": round(flops / seconds / peak, 4) if peak else None,
    }


def report(name: str, shape: str, found: dict[str, Any], aim: float) -> None:
    """Writes the figures of both ways on a model of a real size."""
    _report.write(
        f"{name}-{shape}",
        ours=found["ours"],
        alternative=found["alternative"],
        ratio=found["alternative"]["seconds"] / found["ours"]["seconds"],
        aim=aim,
        command=f"python -m benchmarks.{name} --gpu {shape}",
        largest_difference=found["largest_difference"],
        device=described(),
    )


def _forward_flops(model: Any, rows: Sequence[Sequence[int]], *, tree: bool) -> float:
    config = model.config
    hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
    layer = hidden * (2 * width + 2 * config.num_key_value_heads * config.head_dim + 3 * config.intermediate_size)
    if tree:
        depth_N = token_tree([list(row[:-1]) for row in rows]).depth_N
        tokens, seen, predicted = len(depth_N), int((depth_N + 1).sum()), len(rows) * RESPONSE
    else:
        tokens, seen = sum(map(len, rows)), sum(len(row) * (len(row) + 1) // 2 for row in rows)
        predicted = tokens
    layers = config.num_hidden_layers * (2.0 * layer * tokens + 4.0 * width * seen)
    return layers + 2.0 * hidden * config.vocab_size * predicted


def _peak_flops() -> float | None:
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((1e12 * peak for gpu, peak in PEAK_TERAFLOPS.items() if gpu in name), None)
