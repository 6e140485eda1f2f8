"""Samples with vLLM's asynchronous engine, behind the Generator protocol.

Each adapter version is loaded under its own name and id: if a name were reused, the engine would keep KV blocks of the
old weights. `lm_head` is never adapted. On the CPU a chunked prefill breaks per-request seeds, so a batch has room for
every sequence in full.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from typing import Any

import vllm
from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from cepo.errors import EngineDown, PolicyError
from cepo.messages.arrays import Float32Array
from cepo.messages.groups import BASE_POLICY, PolicyProof, PolicyRef, Sampling
from cepo.net.settings import Settings
from cepo.prompts.canary import FIRST_PLACES, canary_places
from cepo.prompts.images import MAX_IMAGES
from cepo.prompts.pixels import picture
from cepo.prompts.renderer import Renderer
from cepo.service import gpu
from cepo.service.adapters import AdapterCache
from cepo.service.generator import RolloutPrompt, SampledResponse
from cepo.service.image_cache import ReadImage, no_images
from cepo.service.telemetry import loading
from services.rollout.vllm_patches import warn_if_unknown
from services.rollout.vllm_patches.engine import EngineDeadError, cpu_arguments
from services.rollout.vllm_patches.vision_plugin import GROUP, require_plugin

GONE = "vLLM's engine process has stopped"
WATCH_SECONDS = 0.5
NOWHERE = "nowhere.invalid"
"""The only host that chat requests may load media from. RFC 6761 reserves it, so there is no such host; vLLM reads an
empty list as every host."""
LARGE_CARD_BYTES = 70 * 10**9
LARGE_CARD_TOKENS, SMALL_CARD_TOKENS = 8192, 4096
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class VllmGenerator:
    """A vLLM engine with the adapters that it has loaded."""

    def __init__(
        self, settings: Settings, renderer: Renderer, adapters: AdapterCache, read_image: ReadImage = no_images
    ) -> None:
        self.renderer = renderer
        self._read_image = read_image
        self._adapters = adapters
        self._proofs: dict[str, asyncio.Task[PolicyProof]] = {}
        self.resident: dict[str, LoRARequest] = {}
        """The newest versions by policy name, in the order in which they were loaded."""
        self._canary_ids = renderer.canary_ids(settings.max_model_len - 1)
        self._keep = settings.max_loras
        self._numbers = itertools.count(1)
        self._on_cpu = settings.device == "cpu"
        self._cpu_patches = settings.vllm_cpu_patches
        warn_if_unknown(vllm.__version__)
        if renderer.is_vision_language:
            require_plugin(entry_points(group=GROUP))
        self.engine = AsyncLLMEngine.from_engine_args(_engine_args(settings))

    async def load(self, policy: PolicyRef) -> PolicyProof:
        """Loads an adapter unless it is resident, and returns the proof that the engine samples with it.

        Raises:
            PolicyError: the adapter's bytes do not match its digest, or no module took its weights.
        """
        if policy.name not in self._proofs:
            self._proofs[policy.name] = asyncio.ensure_future(self._loaded(policy))
        try:
            with _engine_alive():
                return await asyncio.shield(self._proofs[policy.name])
        except Exception:
            self._proofs.pop(policy.name, None)  # the next task retries
            raise

    async def generate(
        self, prompt: RolloutPrompt, samples: int, sampling: Sampling, seed: int, policy: PolicyRef
    ) -> list[SampledResponse]:
        params = SamplingParams(
            n=samples,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            presence_penalty=sampling.presence_penalty,
            max_tokens=sampling.max_tokens,
            seed=seed,
            logprobs=0,
            stop_token_ids=sorted(self.renderer.stop_ids),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        pictures = [await asyncio.to_thread(picture, await self._read_image(image)) for image in prompt.images]
        with _engine_alive():
            output = await self._run(prompt.compact_ids, params, self._adapter(policy), pictures)
        prompt.require_read(output.prompt_token_ids)
        return [_sample(completion) for completion in sorted(output.outputs, key=lambda c: c.index)]

    async def watch(self) -> None:
        """Raises EngineDown soon after the engine's process has stopped, even without a request."""
        while not self.engine.errored:
            await asyncio.sleep(WATCH_SECONDS)
        raise EngineDown(GONE)

    def close(self) -> None:
        self.engine.shutdown()

    async def _loaded(self, policy: PolicyRef) -> PolicyProof:
        with loading(policy):
            return await self._load(policy)

    async def _load(self, policy: PolicyRef) -> PolicyProof:
        bound, request = 0, None
        if policy == BASE_POLICY and self._on_cpu:
            await self.engine.collective_rpc("cepo_prepare_cpu", args=(self._cpu_patches,))
        if policy != BASE_POLICY:
            folder = await self._adapters.folder(policy)
            request = LoRARequest(policy.name, next(self._numbers), str(folder))
            await self.engine.add_lora(request)
            bound = min(await self.engine.collective_rpc("cepo_bound_modules", args=(request.lora_int_id,)))
            if bound == 0:
                raise PolicyError(
                    f"adapter {policy.name} was loaded, but none of its modules exists in the engine's model; "
                    "compare its target modules with lora.targets"
                )
        logps = await self._canary(request)  # samples the first tokens with this policy
        if request is not None:
            self._keep_resident(request)
        return PolicyProof(
            policy=policy,
            bound_modules=bound,
            canary_logp=sum(logps[: FIRST_PLACES - 1]),
            canary_logps=Float32Array.of(logps),
            tokenizer_sha256=self.renderer.sha256,
            engine="vllm",
            first_token_at=time.time(),
        )

    def _keep_resident(self, request: LoRARequest) -> None:
        """Adds a version and evicts the oldest above the limit; a task that names an evicted version reloads it."""
        self.resident[request.lora_name] = request
        for name in list(self.resident)[: -self._keep]:
            del self.resident[name]
            self._proofs.pop(name, None)

    def _adapter(self, policy: PolicyRef) -> LoRARequest | None:
        if policy == BASE_POLICY:
            return None
        if policy.name not in self.resident:
            raise PolicyError(f"adapter {policy.name} was evicted by newer versions; the next delivery reloads it")
        return self.resident[policy.name]

    async def _canary(self, lora: LoRARequest | None) -> tuple[float, ...]:
        """The log-probs of the canary's scored tokens.

        The first ones are prompt log-probs of one request. Each later one is asked for as a token that may follow its
        own prompt, because prompt log-probs of a long canary would need the logits of all its tokens at once.
        """
        ids = self._canary_ids
        first, *far = [place for place in canary_places(len(ids)) if place >= FIRST_PLACES - 1] or [len(ids) - 1]
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        start = self._run(ids[: first + 1], params, lora)
        output, *rest = await asyncio.gather(start, *(self._follows(place, lora) for place in far))
        rows = zip(ids[1 : first + 1], output.prompt_logprobs[1:], strict=True)
        return (*(row[token].logprob for token, row in rows), *rest)

    async def _follows(self, place: int, lora: LoRARequest | None) -> float:
        """The log-prob of one token of the canary after all tokens before it."""
        token = self._canary_ids[place]
        params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=1, logprob_token_ids=[token], detokenize=False)
        output = await self._run(self._canary_ids[:place], params, lora)
        return float(output.outputs[0].logprobs[0][token].logprob)

    async def _run(
        self, prompt_ids: Sequence[int], params: SamplingParams, lora: LoRARequest | None, pictures: Sequence[Any] = ()
    ) -> Any:
        prompt: Any = tokens_input(list(prompt_ids))
        if pictures:
            prompt = {"prompt_token_ids": list(prompt_ids), "multi_modal_data": {"image": list(pictures)}}
        outputs = self.engine.generate(prompt, params, f"r{next(self._numbers)}", lora_request=lora)
        return [output async for output in outputs][-1]  # with FINAL_ONLY there is only the complete output


@contextlib.contextmanager
def _engine_alive() -> Iterator[None]:
    try:
        yield
    except EngineDeadError as error:
        raise EngineDown(GONE) from error


def _sample(completion: Any) -> SampledResponse:
    ids = tuple(completion.token_ids)
    logps = tuple(row[token].logprob for token, row in zip(ids, completion.logprobs, strict=True))
    return SampledResponse(ids, logps, completion.finish_reason == "stop")


def batched_tokens() -> int:
    """The most tokens of a batch on a GPU, as vLLM's own server chooses them; an engine without it would take 2,048."""
    smallest = min((card.total for card in gpu.memory()), default=0)
    return LARGE_CARD_TOKENS if smallest >= LARGE_CARD_BYTES else SMALL_CARD_TOKENS


def _engine_args(settings: Settings) -> AsyncEngineArgs:
    args: dict[str, Any] = {
        "model": settings.model,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel,
        "enable_lora": True,
        "max_loras": settings.max_loras,
        "max_lora_rank": next(rank for rank in _LORA_RANKS if rank >= settings.max_lora_rank),
        "lora_target_modules": settings.lora_targets.split(","),
        "limit_mm_per_prompt": {"image": MAX_IMAGES},
        "logprobs_mode": "raw_logprobs" if settings.raw_logprobs else "processed_logprobs",
        "worker_extension_cls": "services.rollout.vllm_patches.probe.AdapterProbe",
        "disable_log_stats": True,
        "allowed_media_domains": [NOWHERE],
    }
    if settings.device == "cpu":
        args["max_num_batched_tokens"] = settings.max_num_seqs * settings.max_model_len
        args["enforce_eager"] = True
        # The samples of a prompt share only full blocks of it, and vLLM's default is 128 tokens on the CPU. Its wide
        # attention kernels need a multiple of 32.
        args["block_size"] = 32
        args |= cpu_arguments(whole_responses=settings.vllm_cpu_patches)
    else:
        args["gpu_memory_utilization"] = settings.gpu_memory_utilization
        args["kv_cache_memory_bytes"] = settings.kv_cache_memory_bytes or None
        args["max_num_batched_tokens"] = max(batched_tokens(), settings.max_num_seqs)
    return AsyncEngineArgs(**args)
