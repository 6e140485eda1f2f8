"""`python -m services.rollout.trial`: starts the engine for one prompt and prints its speed as a line of JSON.

The request comes as JSON on standard input: `{"prompt_ids": [1, 2], "samples": 8, "sampling": {...}, "seed": 0}`. The
engine's settings come from the environment, as for the service.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from cepo.messages.groups import BASE_POLICY, Sampling
from cepo.net.settings import Settings
from cepo.prompts.renderer import Renderer
from cepo.service.adapters import trainer_cache
from cepo.service.chassis import mistakes_told
from cepo.service.generator import RolloutPrompt
from services.rollout.vllm_patches import vllm_names

WARM_UP_TOKENS = 8
"""Of a first request, which is not measured: the first batch on a machine compiles and allocates."""


async def measure(request: dict[str, Any], settings: Settings) -> dict[str, float]:
    """Samples one prompt with the base model.

    Returns:
        start_seconds, sample_seconds, tokens (all sampled ones) and samples.
    """
    with vllm_names():
        from services.rollout.engine import VllmGenerator  # imports vLLM

    begun = time.monotonic()
    renderer = Renderer(settings.model, settings.template)
    generator = VllmGenerator(settings, renderer, trainer_cache("trial", settings))
    try:
        await generator.load(BASE_POLICY)
        ids = tuple(request["prompt_ids"])
        prompt, sampling = RolloutPrompt(ids, ids, ()), Sampling.model_validate(request["sampling"])
        warm_up = sampling.model_copy(update={"max_tokens": min(WARM_UP_TOKENS, sampling.max_tokens)})
        await generator.generate(prompt, request["samples"], warm_up, request["seed"], BASE_POLICY)
        started = time.monotonic()
        responses = await generator.generate(prompt, request["samples"], sampling, request["seed"], BASE_POLICY)
        ended = time.monotonic()
    finally:
        generator.close()
    tokens = sum(len(response.token_ids) for response in responses)
    return {
        "start_seconds": started - begun,
        "sample_seconds": ended - started,
        "tokens": tokens,
        "samples": len(responses),
    }


if __name__ == "__main__":
    with mistakes_told("rollout"):
        reply = asyncio.run(measure(json.load(sys.stdin), Settings.from_environment("rollout")))
        sys.stdout.write(f"{json.dumps(reply)}\n")
