"""Models of real sizes with random weights, and the share of a device's peak rate that they reach.

The sizes are those of the models' config.json on Hugging Face (of Qwen3-VL-2B, the language model). Peak rates are from
NVIDIA's data sheets: dense bfloat16 without sparsity.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig

from benchmarks import _report
from benchmarks._shapes import HINT, RESPONSE, ROUNDS, Group, random_group, random_qwen3, side_by_side
from benchmarks._wide import write_prompts
from cepo import tiny
from cepo.data.problems import load_problems
from cepo.model.tree import token_tree
from cepo.prompts.renderer import Renderer
from cepo.run.config import RunConfig

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
        "head_dim": 32,
    },
}
"""`tiny` runs the code without a GPU."""
VOCABULARY = dict.fromkeys(SHAPES, 151_936) | {"tiny": 512}
PEAK_TERAFLOPS = {"H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A6000": 154.8}
PRIME_RL = {
    "qwen3-0.6b": {
        "H100": {"tokens_per_second": 13342, "mfu": 0.109, "peak_gib": 5.1},
        "A6000": {"tokens_per_second": 2414, "mfu": 0.063, "peak_gib": 5.1},
    },
    "qwen3-4b": {
        "H100": {"tokens_per_second": 6229, "mfu": 0.217, "peak_gib": 23.3},
        "A6000": {"tokens_per_second": 1233, "mfu": 0.136, "peak_gib": 23.3},
    },
}
"""Figures of prime-rl's trainer without its other services, LoRA of rank 16, sequences of 16k tokens, one GPU:
benchmarks/baselines in github.com/PrimeIntellect-ai/prime-rl."""
EXAMPLES = 31
"""Solved questions before the actual one: about the 512 tokens of Geometry3K with the tiny tokenizer."""


def device() -> str:
    """The GPU, or the CPU if there is none."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def random_model(shape: str) -> Any:
    """A frozen random model of this shape."""
    return random_qwen3(VOCABULARY[shape], SHAPES[shape], device())


def overrides(folder: Path, shape: str) -> list[str]:
    """Writes a random model of this shape and prompts of Geometry3K's length; returns overrides for a tiny run file.

    The tokenizer is the tiny one, padded with unused tokens to the vocabulary size. Responses reach the maximal length,
    because only one of 151,936 tokens ends them.
    """
    model, data = folder / "model", folder / "prompts.jsonl"
    shutil.copytree(tiny.path(), model)
    fill_vocabulary(model / "tokenizer.json", VOCABULARY[shape])
    made = random_model(shape)
    made.generation_config = GenerationConfig.from_pretrained(model)  # it names the end-of-sequence token
    made.save_pretrained(model)
    del made
    torch.cuda.empty_cache()  # other processes need the memory
    write_prompts(data, EXAMPLES)
    on_gpu = device() == "cuda"
    return [
        f'model.path="{model}"',
        f'model.dtype="{"bfloat16" if on_gpu else "float32"}"',
        "model.max_length=1024",
        f'data.train="{data}"',
        "lora.rank=16",
        "lora.alpha=32",
        f"sampling.prompts={32 if on_gpu else 4}",
        f"sampling.max_tokens={RESPONSE}",
        'reward.functions=["benchmarks._wide:digits"]',
        "optim.lr=1e-12",
        "optim.gradient_checkpointing=true",
        "loop.deterministic=false",
        f'engine.device="{device()}"',
        "engine.gpu_memory_utilization=0.35",
        f"engine.max_num_seqs={256 if on_gpu else 32}",
        "engine.max_lora_rank=16",
    ]


def fill_vocabulary(file: Path, size: int) -> None:
    """Adds unused tokens to a tokenizer's file."""
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    words |= {f"w{number}": number for number in range(len(words), size)}
    file.write_text(json.dumps(tokenizer))


def described() -> str:
    """The device and precision of the figures."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, bfloat16, torch {torch.__version__}"
    return f"CPU, {torch.get_num_threads()} threads, float32, torch {torch.__version__}"


def flops(config: Any, group: Group, *contexts: str, tree: bool) -> float:
    """FLOPs of a forward pass over a group in these contexts.

    Counts what the algorithm needs: a tree processes each shared token once, and computes logits for response tokens
    only.
    """
    prompts, responses = group.rows(*contexts)
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    hidden, width = config.hidden_size, config.num_attention_heads * config.head_dim
    layer = hidden * (2 * width + 2 * config.num_key_value_heads * config.head_dim + 3 * config.intermediate_size)
    if tree:
        depth_N = token_tree([row[:-1] for row in rows]).depth_N
        tokens, seen, predicted = len(depth_N), int((depth_N + 1).sum()), sum(map(len, responses))
    else:
        tokens, seen = sum(map(len, rows)), sum(len(row) * (len(row) + 1) // 2 for row in rows)
        predicted = tokens
    layers = config.num_hidden_layers * (2.0 * layer * tokens + 4.0 * width * seen)
    return layers + 2.0 * hidden * config.vocab_size * predicted


def mfu(flops: float, seconds: float) -> float | None:
    """The share of the GPU's peak rate; None if the peak is unknown."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    peak = next((1e12 * peak for gpu, peak in PEAK_TERAFLOPS.items() if gpu in name), None)
    return round(flops / seconds / peak, 4) if peak else None


def compared(
    works: Mapping[str, Callable[[], Tensor]], config: Any, group: Group, *contexts: str, backward: bool = False
) -> dict[str, Any]:
    """Our pass and the alternative's over a group, with the share of the peak rate of each.

    Tokens are counted row by row, as if nothing were shared, so that both have the same count. The backward pass of a
    frozen base under LoRA costs as much as the forward pass.
    """
    figures, gap = side_by_side(works, ROUNDS)
    tokens = sum(map(len, chain(*group.rows(*contexts))))
    found: dict[str, Any] = {"largest_difference": gap}
    for name, one in figures.items():
        seconds, work = one["seconds"], flops(config, group, *contexts, tree=name == "ours") * (2 if backward else 1)
        found[name] = one | {
            "tokens_per_second": round(tokens / seconds, 1),
            "teraflops_per_second": round(work / seconds / 1e12, 3),
            "mfu": mfu(work, seconds),
        }
    return found


def rates(config: RunConfig, figures: Mapping[str, float]) -> dict[str, Any]:
    """Tokens per second and MFU of a step from its seconds and mean response length.

    FLOPs are the minimum that the step needs, for any implementation: each prompt once to sample, a tree forward and
    backward to learn, and with a teacher one more tree with both hints.
    """
    model = AutoConfig.from_pretrained(config.model.path)
    problems = load_problems(config, renderer := Renderer(config.model.path))
    prompts = [len(renderer.prompt_ids(problems.at(at, config.loop.seed).messages)) for at in range(8)]
    lengths = (round(statistics.mean(prompts)), HINT, round(figures["response_tokens"]))
    group, groups = random_group(model.vocab_size, lengths), config.sampling.prompts
    plain = groups * flops(model, group, "plain", tree=True)
    teacher = groups * flops(model, group, "r+", "r-", tree=True) if config.algorithm.asks else 0.0
    tokens = groups * config.sampling.samples * figures["response_tokens"]
    return {
        "tokens_per_second": round(tokens / figures["step_seconds"], 1),
        "mfu": mfu(3 * plain + teacher, figures["step_seconds"]),
        "generated_tokens_per_second": round(tokens / figures["rollout_seconds"], 1),
        "generation_mfu": mfu(plain, figures["rollout_seconds"]),
        "trained_tokens_per_second": round(tokens / figures["train_seconds"], 1),
        "training_mfu": mfu(2 * plain, figures["train_seconds"]),
    }


def report(name: str, shape: str, found: dict[str, Any], aim: float) -> None:
    """Writes the figures of both implementations for a model of a real size."""
    ratio = found["alternative"]["seconds"] / found["ours"]["seconds"]
    _report.write(name, shape, **found, ratio=ratio, aim=aim, **about(shape))


def about(shape: str | None) -> dict[str, Any]:
    """Additional fields of a result for a model of a real size."""
    return {"device": described()} if shape else {}
