"""The model, group, timing and memory measurement shared by the scoring and learning benchmarks."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

THREADS = 2
ROUNDS = 5
PROMPT, HINT, RESPONSE, SAMPLES = 512, 16, 256, 8
"""The shape of Geometry3K: tokens of a question, a hint and a response; responses per question."""

Ids = list[int]


@dataclass(frozen=True)
class Group:
    """The responses to one question, in each context."""

    contexts: dict[str, Ids]
    responses: list[Ids]

    def rows(self, *contexts: str) -> tuple[list[Ids], list[Ids]]:
        """Prompts and responses of every response in each of these contexts."""
        return [self.contexts[name] for name in contexts for _ in self.responses], self.responses * len(contexts)


SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "head_dim": 64,
}
"""A model that a CPU runs in seconds: 25.2 M weights in linear layers, without the vocabulary."""


def random_qwen3(vocabulary: int, sizes: Mapping[str, int] | None = None, device: str = "cpu") -> Any:
    """A frozen random model."""
    sizes = {"num_key_value_heads": 4, **(sizes or SMALL)}
    return frozen(Qwen3ForCausalLM, Qwen3Config(**sizes, vocab_size=vocabulary, tie_word_embeddings=True), device)


def frozen(kind: Any, config: Any, device: str) -> Any:
    """A random model that is not trained: float32 on the CPU, bfloat16 elsewhere."""
    torch.manual_seed(0)
    with torch.device(device):
        model = kind._from_config(config, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    return model.eval().requires_grad_(False)


TINY = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
TINY_WORDS, TINY_LENGTHS = 512, (35, 10, 27)
"""The shipped tiny model and its groups."""


def random_group(vocabulary: int, lengths: tuple[int, int, int] = (PROMPT, HINT, RESPONSE), seed: int = 0) -> Group:
    """A group of random tokens that shares only the question and the hints.

    Args:
        lengths: tokens of the question, of a hint and of a response.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt, hint, response = lengths

    def ids(size: int) -> Ids:
        return torch.randint(0, vocabulary, (size,), generator=generator).tolist()

    question = ids(prompt)
    contexts = {"plain": question, "r+": question + ids(hint), "r-": question + ids(hint)}
    return Group(contexts, [ids(response) for _ in range(SAMPLES)])


def watched(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Returns the result of `work` and the peak increase of memory in MiB while it ran.

    Memory is that of the GPU if there is one, otherwise resident memory (Linux).
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        taken = torch.cuda.memory_allocated()
        result = work()
        torch.cuda.synchronize()
        return result, (torch.cuda.max_memory_allocated() - taken) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    result = work()
    return result, (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def case(works: Mapping[str, Callable[[], Tensor]], rounds: int, tolerance: float) -> dict[str, Any]:
    """Figures of ours and of the alternative, with the ratios of their seconds and memory.

    Raises:
        SystemExit: their results differ by more than the tolerance.
    """
    figures, gap = side_by_side(works, rounds)
    if gap > tolerance:
        raise SystemExit(f"the results of {' and '.join(list(works)[:2])} differ by {gap}")
    ours, alternative = figures["ours"], figures["alternative"]
    return {
        **figures,
        "ratio": round(alternative["seconds"] / ours["seconds"], 2),
        "memory_ratio": round(ours["peak_mib"] / alternative["peak_mib"], 3),
        "largest_difference": gap,
    }


def side_by_side(works: Mapping[str, Callable[[], Tensor]], rounds: int) -> tuple[dict[str, dict[str, float]], float]:
    """Median seconds over alternating rounds, and the peak memory of a first run, whose results are compared.

    Returns:
        Figures by name, and the largest difference between the results of the first two.
    """
    results, peaks = zip(*(watched(work) for work in works.values()), strict=True)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begun)
    figures = {
        name: {"seconds": round(statistics.median(seconds[name]), 3), "peak_mib": round(peak)}
        for name, peak in zip(works, peaks, strict=True)
    }
    return figures, float((results[0] - results[1]).abs().max())
