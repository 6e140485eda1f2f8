"""The parts of the GPU benchmark: `python -m benchmarks._gpu_parts PART SHAPE FOLDER SECONDS`.

The last line printed is the result as JSON. `SECONDS` is the time that the part may take.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import _gpu, learner, score
from benchmarks._gpu_system import system
from benchmarks._gpu_vllm import loaded, scored
from benchmarks._shapes import Group, random_group, watched
from cepo.model.activations import counted_group, pass_bytes
from cepo.model.forward import checkpoint_layers, response_logps
from cepo.model.lora import make_lean
from cepo.run.sections import LINEAR_LAYERS

PACKAGES = ("cepo", "torch", "triton", "vllm", "transformers", "peft")
PASSES = {  # the trainer's micro-batches by default and with 4,096 tokens, and the teacher's pass
    "16,384 tokens, training with checkpointing": (16384, True, True),
    "4,096 tokens, training": (4096, True, False),
    "32,768 tokens, scoring": (32768, False, False),
}
TINY_SHARE = 64
"""The tiny shape's passes and long sequences are smaller by this factor."""
LONG = 16384
"""Tokens of prime-rl's sequences."""
ROUNDS = 3


def environment(shape: str, folder: Path, seconds: float) -> dict[str, Any]:
    """The GPU, its driver, and the versions of what runs on it."""
    found: dict[str, Any] = {"device": _gpu.described(), "versions": {}}
    for package in PACKAGES:
        try:
            found["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found["versions"][package] = None
    if torch.cuda.is_available():
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
        found["gpus"] = subprocess.run(query, capture_output=True, text=True).stdout.strip().splitlines()
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        found["cuda"] = torch.version.cuda
    return found


def plan(shape: str, folder: Path, seconds: float) -> dict[str, Any]:
    """The counted bytes of each pass, and the peak of the same pass on this device."""
    model, figures = learner.with_adapter(_gpu.random_model(shape)), {}
    make_lean(model)
    base, share = model.get_base_model(), TINY_SHARE if shape == "tiny" else 1
    dtype = "bfloat16" if _gpu.device() == "cuda" else "float32"
    for name, (tokens, training, checkpointing) in PASSES.items():
        kind = (base.config, dtype, LINEAR_LAYERS, 16, tokens // share)
        counted = pass_bytes(*kind, training=training, checkpointing=checkpointing)
        base.eval().gradient_checkpointing_disable()
        if checkpointing:
            checkpoint_layers(base)
        work = partial(one_pass, model, tokens // share, training)
        work()  # compiles and allocates workspaces
        _, peak = watched(work)
        figures[name] = {"counted_mib": round(counted / 2**20, 1), "peak_mib": round(peak, 1)}
        model.zero_grad()
    return {"passes": figures}


def one_pass(model: Any, tokens: int, training: bool) -> torch.Tensor:
    """A pass over a group of the shape that the planner counts."""
    model.zero_grad()
    prompts, responses = counted_group(tokens, model.config.vocab_size)
    with torch.set_grad_enabled(training):
        logp_BT = response_logps(model.get_base_model(), prompts, responses, 1.0)
        if training:
            logp_BT.sum().backward()
    return logp_BT.detach()


def learn(shape: str, folder: Path, seconds: float) -> dict[str, Any]:
    """The group of Geometry3K's shape, and a long sequence as prime-rl measures it."""
    return learner.on_gpu(shape) | {"long_sequence": long_sequence(shape)}


def long_sequence(shape: str) -> dict[str, Any]:
    """Tokens per second and MFU of forward and backward with checkpointing, every token trained."""
    model = learner.with_adapter(_gpu.random_model(shape))
    make_lean(model)
    base, tokens = model.get_base_model(), LONG // (TINY_SHARE if shape == "tiny" else 1)
    checkpoint_layers(base)
    group = random_group(_gpu.VOCABULARY[shape], (1, 1, tokens - 1))
    prompts, responses = [group.contexts["plain"]], group.responses[:1]

    def work() -> torch.Tensor:
        model.zero_grad()
        response_logps(base, prompts, responses, 1.0).sum().backward()
        return torch.zeros(())

    work()
    seconds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    fastest, flops = (
        min(seconds),
        2 * _gpu.flops(model.config, Group({"plain": prompts[0]}, responses), "plain", tree=True),
    )
    return {
        "tokens": tokens,
        "tokens_per_second": round(tokens / fastest, 1),
        "mfu": _gpu.mfu(flops, fastest),
        "peak_mib": round(watched(work)[1]),
    }


def scoring(shape: str, folder: Path, seconds: float) -> dict[str, Any]:
    return score.on_gpu(shape)


PARTS: dict[str, Callable[[str, Path, float], dict[str, Any]]] = {
    "environment": environment,
    "plan": plan,
    "score": scoring,
    "learner": learn,
    "vllm": scored,
    "vllm_lora": loaded,
    "system": system,
}


def main(name: str, shape: str, folder: str, seconds: str) -> None:
    """Measures one part and prints its result."""
    print(json.dumps(PARTS[name](shape, Path(folder), float(seconds))))  # noqa: T201 read by _gpu_run


if __name__ == "__main__":
    main(*sys.argv[1:])
