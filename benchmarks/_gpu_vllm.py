"""vLLM alone, as a user would call it: scoring rows, and loading adapters. Two parts of the GPU benchmark.

Two ways to score: `prompt_logprobs`, which returns every row of the prompt, and `prompt_logprob_token_ids` from
`prompt_logprob_start` on, which returns the response's tokens only and needs Model Runner V2, the runner on CUDA. The
loading is the engine call behind `POST /v1/load_lora_adapter`.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import _gpu, learner, score
from benchmarks._shapes import Ids, random_group

ROUNDS, VERSIONS = 3, 8
ADAPTERS = 2
"""Adapters on disk; versions alternate between them under new names, so that each is loaded."""
PROMPT = 32
"""Tokens of the prompt whose first token is sampled with a new adapter."""


def scored(shape: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Seconds of both ways to score, and the largest difference from CEPO's scores."""
    group, contexts = random_group(_gpu.VOCABULARY[shape]), score.CONTEXTS["r+ r-"]
    prompts, responses = group.rows(*contexts)
    model = _gpu.random_model(shape)
    model.save_pretrained(folder / "scored")
    logp_BT = score.shared(model, group, contexts).cpu()
    del model
    freed()
    engine = started(folder / "scored", prompts, responses, enforce_eager=True)  # scoring uses no CUDA graphs
    return {
        "prompt_logprobs": timed(lambda: by_prompt(engine, prompts, responses), logp_BT),
        "prompt_logprob_token_ids": timed(lambda: by_ids(engine, prompts, responses), logp_BT),
    }


def loaded(shape: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Seconds of loading an adapter."""
    prompts, responses = random_group(_gpu.VOCABULARY[shape]).rows("plain")
    model = _gpu.random_model(shape)
    model.save_pretrained(folder / "loaded")
    adapters = [folder / f"adapter-{number}" for number in range(ADAPTERS)]
    adapted = learner.with_adapter(model)
    for path in adapters:
        adapted.save_pretrained(path)
    del model, adapted
    freed()
    engine = started(folder / "loaded", prompts, responses, enable_lora=True, max_loras=2, max_lora_rank=16)
    return loads(engine, adapters, prompts[0][:PROMPT])


def freed() -> None:
    """Frees the GPU memory of what was deleted; vLLM measures what is free."""
    gc.collect()
    torch.cuda.empty_cache()


def started(model: Path, prompts: list[Ids], responses: list[Ids], **options: Any) -> Any:
    """vLLM in this process, with room for all rows in one batch."""
    from vllm import LLM
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    longest = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)) + 1
    return LLM(
        model=str(model),
        skip_tokenizer_init=True,
        dtype="bfloat16" if _gpu.device() == "cuda" else "float32",
        max_model_len=longest,
        max_num_batched_tokens=longest * len(prompts),
        max_num_seqs=len(prompts),
        gpu_memory_utilization=0.35,
        **options,
        distributed_executor_backend=UniProcExecutor,
    )


def by_prompt(engine: Any, prompts: list[Ids], responses: list[Ids]) -> list[list[float]]:
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    outputs = engine.generate([{"prompt_token_ids": row} for row in rows], params, use_tqdm=False)
    return [
        [place[token].logprob for token, place in zip(response, output.prompt_logprobs[-len(response) :], strict=True)]
        for response, output in zip(responses, outputs, strict=True)
    ]


def by_ids(engine: Any, prompts: list[Ids], responses: list[Ids]) -> list[list[float]]:
    from vllm import SamplingParams

    rows, params = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        rows.append({"prompt_token_ids": [*prompt, *response]})
        scored = {"prompt_logprob_token_ids": [[token] for token in response], "prompt_logprob_start": len(prompt) - 1}
        params.append(SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, **scored))
    outputs = engine.generate(rows, params, use_tqdm=False)
    return [[float(scores[0]) for scores in output.prompt_token_id_logprobs] for output in outputs]


def timed(work: Callable[[], list[list[float]]], logp_BT: Tensor) -> dict[str, Any]:
    """Median seconds after a first round; `refused` with vLLM's reason where it cannot."""
    from vllm.exceptions import VLLMValidationError

    try:
        theirs_BT = torch.tensor(work())
    except VLLMValidationError as error:
        return {"refused": str(error).splitlines()[0]}
    seconds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    gap = float((theirs_BT - logp_BT).abs().max())
    return {"seconds": round(statistics.median(seconds), 4), "largest_difference": gap}


def loads(engine: Any, adapters: list[Path], prompt: Ids) -> dict[str, Any]:
    """Median seconds from an adapter on disk to the first token that is sampled with it."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    params, seconds = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False), []
    for version in range(1, VERSIONS + 1):
        begun = time.perf_counter()
        request = LoRARequest(f"v{version}", version, str(adapters[version % len(adapters)]))
        engine.llm_engine.add_lora(request)
        engine.generate([{"prompt_token_ids": prompt}], params, lora_request=request, use_tqdm=False)
        seconds.append(time.perf_counter() - begun)
    return {"first_token_seconds": round(statistics.median(seconds[1:]), 4), "versions": VERSIONS - 1}
