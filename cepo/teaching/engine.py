"""A transformers model with PEFT adapters behind the Scorer protocol: one base model and its recent adapters.

Groups that wait for the same policy are scored in one pass, because the time of a small group is mostly the overhead
of calling small operators.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from cepo.errors import PolicyError
from cepo.messages.arrays import Float32Array
from cepo.messages.groups import BASE_POLICY, ImageRef, PolicyProof, PolicyRef
from cepo.model.forward import ResponseStates, canary_logps, cut_passes, load_causal_lm, response_states
from cepo.model.lora import make_lean
from cepo.model.probe import prove
from cepo.model.rope import positions
from cepo.model.shared import SharedModel
from cepo.model.transfer import to_device
from cepo.net.settings import Settings
from cepo.prompts.canary import FIRST_PLACES
from cepo.prompts.pixels import Patches
from cepo.prompts.renderer import Renderer
from cepo.service.adapters import AdapterCache
from cepo.service.image_cache import ReadImage, no_images
from cepo.service.metrics import LOAD_FAILURES
from cepo.service.telemetry import loading
from cepo.teaching import measures
from cepo.teaching.batcher import Batcher, ScoreRequest, Take
from cepo.teaching.handler import Likeliest, Logps, Pair, Scored

T = TypeVar("T")
TOKENS_PER_PASS = 32768
"""Most tokens of one forward pass. A prefix shared by several sequences counts once if the model takes trees; otherwise
the pass is padded, and its padding counts."""
TOKENS_TOGETHER = {"cpu": 4096, "cuda": TOKENS_PER_PASS}
"""Most tokens of groups that share a pass. On a CPU more tokens gain nothing (benchmarks/NOTES.md)."""


class TransformersScorer:
    """Loads adapters and scores on one thread, so that adapters are never switched during a pass."""

    def __init__(
        self,
        settings: Settings,
        renderer: Renderer,
        adapters: AdapterCache,
        read_image: ReadImage = no_images,
        base: SharedModel | None = None,
    ) -> None:
        """Loads the base model and proves it, unless a learner shares its own.

        Args:
            settings: `max_loras` adapters stay resident; at most `concurrency` groups share a pass.
            renderer: the tokenizer and the image processor of the model.
            adapters: the adapters' files.
            read_image: returns the bytes of an image.
            base: the learner's model, for a teacher inside the trainer.

        Raises:
            UserError: the model cannot be loaded, or this project's forward pass is wrong for its family.
        """
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._renderer = renderer
        self._adapters = adapters
        self._read_image = read_image
        self._keep = settings.max_loras
        self._base = base or SharedModel(_proven(settings))
        limit = positions(self._base.model.config) or settings.max_model_len
        self.context_length = min(settings.max_model_len, limit)
        """The longest context with its response, in tokens."""
        self._canary_ids = renderer.canary_ids(self.context_length - 1)
        self._proofs: dict[str, PolicyProof] = {}
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="score")
        together = TOKENS_TOGETHER[self._base.model.device.type]
        self._batcher = Batcher(self._run, settings.concurrency, together)

    async def load(self, policy: PolicyRef) -> PolicyProof:
        """Loads an adapter unless it is resident, and proves that the model took it.

        Raises:
            PolicyError: the adapter's bytes are wrong, or no module took its weights.
        """
        begun = time.perf_counter()
        if policy != BASE_POLICY and policy.name not in self._proofs:
            with LOAD_FAILURES.count_exceptions():
                await self._adapters.folder(policy)  # without the lock, so that a slow fetch delays no other policy
        return await self._resident(policy, begun)

    async def _resident(self, policy: PolicyRef, begun: float) -> PolicyProof:
        async with self._lock:
            if policy.name not in self._proofs:
                with loading(policy, begun):
                    folder = None if policy == BASE_POLICY else await self._adapters.folder(policy)
                    await self._bound(policy, folder)
            proof = self._proofs[policy.name] = self._proofs.pop(policy.name)  # now the most recently used
            return proof

    async def _bound(self, policy: PolicyRef, folder: Path | None) -> None:
        """Binds an adapter; a cancelled caller still waits for the end, so that the model is never half-switched."""
        binding = asyncio.ensure_future(self._on_thread(self._bind, policy, folder))
        try:
            await asyncio.shield(binding)
        finally:
            self._proofs[policy.name] = await binding

    async def score(self, pairs: Sequence[Pair], temperature: float, policy: PolicyRef) -> Scored[Logps]:
        return await self._measure(pairs, temperature, policy, _logps)

    async def likeliest(
        self, pairs: Sequence[Pair], k: int, temperature: float, policy: PolicyRef
    ) -> Scored[Likeliest]:
        return await self._measure(pairs, temperature, policy, lambda states, _: measures.likeliest(states, k))

    async def gather(
        self, pairs: Sequence[Pair], ids: Sequence[bytes], temperature: float, policy: PolicyRef
    ) -> Scored[Likeliest]:
        return await self._measure(
            pairs, temperature, policy, lambda states, rows: measures.gather(states, [ids[row] for row in rows])
        )

    async def pool(self, pairs: Sequence[Pair], policy: PolicyRef) -> Scored[tuple[float, ...]]:
        return await self._measure(pairs, 1.0, policy, lambda states, _: measures.pooled(states))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _measure(self, pairs: Sequence[Pair], temperature: float, policy: PolicyRef, take: Take) -> Scored[Any]:
        await self.load(policy)
        images = dict.fromkeys(image for pair in pairs for image in pair.images)
        data = {image: await self._read_image(image) for image in images}
        return await self._batcher.submit(ScoreRequest(pairs, data, temperature, policy, take))

    async def _run(self, batch: Sequence[ScoreRequest]) -> list[Scored[Any]]:
        await self._resident(batch[0].policy, time.perf_counter())  # other policies may have evicted it meanwhile
        return await self._on_thread(self._pass, batch)

    async def _on_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def _bind(self, policy: PolicyRef, folder: Path | None) -> PolicyProof:
        with self._base.exclusive():
            bound = 0 if folder is None else self._attach(policy, folder)
            self._activate(policy)
            self._drop_unused(policy)
            logps = canary_logps(self._base.model, self._canary_ids)
            return PolicyProof(
                policy=policy,
                bound_modules=bound,
                canary_logp=sum(logps[: FIRST_PLACES - 1]),
                canary_logps=Float32Array.of(logps),
                tokenizer_sha256=self._renderer.sha256,
                engine="transformers",
            )

    def _attach(self, policy: PolicyRef, folder: Path) -> int:
        """Loads an adapter beside the others and returns the number of modules that took it."""
        base, name = self._base, policy.name
        if base.peft is None:
            base.peft = PeftModel.from_pretrained(base.model, folder, adapter_name=name)
        else:
            base.peft.load_adapter(folder, adapter_name=name)
        make_lean(base.peft)
        bound = sum(name in layer.lora_A for layer in base.peft.modules() if isinstance(layer, LoraLayer))
        if bound == 0:
            raise PolicyError(f"adapter {name} loaded but bound to no module")
        return bound

    def _drop_unused(self, newest: PolicyRef) -> None:
        """Evicts the least recently used adapters; a teacher's adapter may be older than later announced ones."""
        if self._base.peft is None:
            return
        resident = [name for name in (*self._proofs, newest.name) if name in self._base.peft.peft_config]
        for name in resident[: -self._keep]:
            self._base.peft.delete_adapter(name)
            del self._proofs[name]

    def _activate(self, policy: PolicyRef) -> None:
        if self._base.peft is None:
            return
        if policy == BASE_POLICY:
            self._base.peft.base_model.disable_adapter_layers()
        else:
            self._base.peft.base_model.enable_adapter_layers()
            self._base.peft.set_adapter(policy.name)

    @torch.no_grad()
    def _pass(self, batch: Sequence[ScoreRequest]) -> list[Scored[Any]]:
        """Scores the pairs of compatible requests together; splits them only if they exceed `TOKENS_PER_PASS`."""
        temperature, policy, take = batch[0].temperature, batch[0].policy, batch[0].take
        data = {image: value for request in batch for image, value in request.data.items()}
        pairs = [pair for request in batch for pair in request.pairs]
        values: list[Any] = [None] * len(pairs)
        seconds = 0.0
        sequences = [pair.context_ids + pair.response_ids for pair in pairs]
        for rows in cut_passes(self._base.model, sequences, TOKENS_PER_PASS):
            with self._base.exclusive():
                begun = time.perf_counter()
                states = self._states([pairs[i] for i in rows], data, temperature, policy)
                for i, value in zip(rows, take(states, rows), strict=True):
                    values[i] = value
                seconds += time.perf_counter() - begun
        each, tokens = iter(values), sum(request.tokens for request in batch)
        return [
            Scored(list(islice(each, len(request.pairs))), seconds * request.tokens / max(1, tokens))
            for request in batch
        ]

    def _states(
        self, pairs: Sequence[Pair], data: Mapping[ImageRef, bytes], temperature: float, policy: PolicyRef
    ) -> ResponseStates:
        """The states of the responses under a policy, mixed with the base model's where a pair has a share of it."""

        def patches(image: ImageRef) -> Patches:
            return self._renderer.pixels.patches(image, data[image])

        contexts, responses = [pair.context_ids for pair in pairs], [pair.response_ids for pair in pairs]
        self._activate(policy)
        images = [[self._base.features.of(image, patches) for image in pair.images] for pair in pairs]
        given = [pair.given for pair in pairs]
        states = response_states(self._base.model, contexts, responses, temperature, images, given)
        share_B = torch.tensor([pair.base_share for pair in pairs])
        if not share_B.any():
            return states
        self._activate(BASE_POLICY)
        base = response_states(self._base.model, contexts, responses, temperature, images, given)
        return nearer(states, base, share_B)


def _proven(settings: Settings) -> Any:
    """Loads the base model, and proves that this project's forward pass is right for it."""
    model = load_causal_lm(settings.model, settings.dtype, settings.device, settings.max_model_len)
    prove(model, settings.model)
    return model


def _logps(states: ResponseStates, rows: Sequence[int]) -> list[Logps]:
    return measures.logps(states)


def nearer(states: ResponseStates, base: ResponseStates, share_B: Tensor) -> ResponseStates:
    """Returns states whose logits are the weighted mean of the logits of two models.

    Mixing the hidden states is enough, because both models have the same linear head.

    Args:
        states: the policy's, with N valid tokens of B sequences.
        base: the base model's, of the same tokens.
        share_B: the base model's share of the logits of each sequence, within [0, 1].
    """
    share_N1 = to_device(share_B.repeat_interleave(states.valid_BT.sum(dim=1))[:, None], states.hidden_ND.device)
    mixed_ND = states.hidden_ND.float().lerp(base.hidden_ND.float(), share_N1)
    return replace(states, hidden_ND=mixed_ND.to(states.hidden_ND.dtype))
