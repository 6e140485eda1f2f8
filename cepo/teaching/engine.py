"""A transformers model with PEFT adapters behind the Scorer protocol: one base, the recent policies beside it.

Groups that wait for the same policy are scored in one pass: a small group alone is mostly calls of small operators.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from cepo.errors import PolicyError
from cepo.messages.groups import BASE_POLICY, ImageRef, PolicyProof, PolicyRef
from cepo.model.forward import ResponseStates, canary_logp, load_causal_lm, response_states
from cepo.model.lora import make_lean
from cepo.model.shared import SharedModel
from cepo.model.tree import passes
from cepo.net.settings import Settings
from cepo.prompts.pixels import Patches
from cepo.prompts.renderer import Renderer
from cepo.service.adapters import AdapterCache
from cepo.service.image_cache import ReadImage, no_images
from cepo.service.metrics import LOAD_FAILURES
from cepo.service.telemetry import loading
from cepo.teaching import measures
from cepo.teaching.handler import Likeliest, Logps, Pair, Scored
from cepo.teaching.request import Request, Take

TOKENS_PER_PASS = 32768
"""Distinct tokens of one forward pass; what several contexts or responses begin with counts once."""
TOKENS_TOGETHER = {"cpu": 4096, "cuda": TOKENS_PER_PASS}
"""Of groups that share a pass: on a CPU more gain nothing (benchmarks/NOTES.md)."""

log = logging.getLogger(__name__)


class TransformersScorer:
    """Scores on one thread, so that a pass never meets a half-switched adapter."""

    def __init__(
        self,
        settings: Settings,
        renderer: Renderer,
        adapters: AdapterCache,
        read_image: ReadImage = no_images,
        base: SharedModel | None = None,
    ) -> None:
        """Scores on a base of its own, loaded here, or on one that a learner lends."""
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._renderer = renderer
        self._adapters = adapters
        self._read_image = read_image
        self._keep = settings.max_loras
        self._together = settings.concurrency
        self._waiting: dict[Request, None] = {}
        self._base = base or SharedModel(load_causal_lm(settings.model, settings.dtype, settings.device))
        self._proofs: dict[str, PolicyProof] = {}
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="score")

    async def load(self, policy: PolicyRef) -> PolicyProof:
        """Loads an adapter if it is not resident, and proves what was bound.

        Raises:
            PolicyError: the adapter's bytes are wrong, or no module took its weights.
        """
        begun = time.perf_counter()
        if policy != BASE_POLICY and policy.name not in self._proofs:
            with LOAD_FAILURES.count_exceptions():
                await self._adapters.folder(policy)  # without the lock: who waits for the trainer holds up no other
        async with self._lock:
            if policy.name not in self._proofs:
                with loading(policy, begun):
                    folder = None if policy == BASE_POLICY else await self._adapters.folder(policy)
                    await self._bound(policy, folder)
            proof = self._proofs[policy.name] = self._proofs.pop(policy.name)  # the last in the order of use
            return proof

    async def _bound(self, policy: PolicyRef, folder: Path | None) -> None:
        """Binds to the end, though the caller be cancelled: the model is not left between two policies."""
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
        await self.load(policy)  # another group's load may have dropped it since
        images = dict.fromkeys(image for pair in pairs for image in pair.images)
        data = {image: await self._read_image(image) for image in images}
        request = Request(pairs, data, temperature, policy, take)
        self._waiting[request] = None
        try:
            await self._on_thread(self._serve, request)
        finally:
            self._waiting.pop(request, None)
        return Scored(request.found, request.seconds)

    async def _on_thread(self, work: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def _bind(self, policy: PolicyRef, folder: Path | None) -> PolicyProof:
        with self._base.exclusive():
            bound = 0 if folder is None else self._attach(policy, folder)
            self._activate(policy)
            self._drop_unused(policy)
            return PolicyProof(
                policy=policy,
                bound_modules=bound,
                canary_logp=canary_logp(self._base.model, self._renderer.canary_ids),
                tokenizer_sha256=self._renderer.sha256,
                engine="transformers",
            )

    def _attach(self, policy: PolicyRef, folder: Path) -> int:
        """Puts an adapter beside the others; returns the modules that took it."""
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
        """Drops the least recently used beyond what is kept: a teacher may be older than what was announced since."""
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

    def _serve(self, own: Request) -> None:
        """Serves a request, unless another's turn did, and those that wait and go with it."""
        if own not in self._waiting:
            return
        taken = self._company(own)
        for request in taken:
            self._waiting.pop(request, None)
        try:
            self._passed(taken)
        except Exception:
            if len(taken) == 1:
                raise
            log.exception("a pass of %d groups failed; each is scored alone", len(taken))
            for request in taken:
                request.alone = True
            self._waiting.update(dict.fromkeys(taken[1:]))  # until their turns, which come
            self._passed([own])

    def _company(self, own: Request) -> list[Request]:
        """A request and what shares its pass, in the order of waiting."""
        taken, room = [own], TOKENS_TOGETHER[self._base.model.device.type] - own.tokens
        for request in list(self._waiting):
            if len(taken) == self._together:
                break
            if request is not own and request.goes_with(own) and request.tokens <= room:
                taken.append(request)
                room -= request.tokens
        return taken

    @torch.no_grad()
    def _passed(self, requests: Sequence[Request]) -> None:
        """Requests that go together."""
        data = {image: value for request in requests for image, value in request.data.items()}
        pairs = [pair for request in requests for pair in request.pairs]
        temperature, policy, take = requests[0].temperature, requests[0].policy, requests[0].take

        def patches(image: ImageRef) -> Patches:
            return self._renderer.pixels.patches(image, data[image])

        found: list[Any] = [None] * len(pairs)
        seconds = 0.0
        for rows in passes([pair.context_ids + pair.response_ids for pair in pairs], TOKENS_PER_PASS):
            contexts, responses = [pairs[i].context_ids for i in rows], [pairs[i].response_ids for i in rows]
            with self._base.exclusive():
                begun = time.perf_counter()
                self._activate(policy)
                images = [[self._base.features.of(image, patches) for image in pairs[i].images] for i in rows]
                states = response_states(self._base.model, contexts, responses, temperature, images)
                share_B = torch.tensor([pairs[i].base_share for i in rows], device=states.valid_BT.device)
                if share_B.any():
                    self._activate(BASE_POLICY)
                    base = response_states(self._base.model, contexts, responses, temperature, images)
                    states = nearer(states, base, share_B)
                for i, item in zip(rows, take(states, rows), strict=True):
                    found[i] = item
                seconds += time.perf_counter() - begun
        items, tokens = iter(found), sum(request.tokens for request in requests)
        for request in requests:
            request.found = list(islice(items, len(request.pairs)))
            request.seconds = seconds * request.tokens / max(1, tokens)


def _logps(states: ResponseStates, rows: Sequence[int]) -> list[Logps]:
    return measures.logps(states)


def nearer(states: ResponseStates, base: ResponseStates, share_B: Tensor) -> ResponseStates:
    """States whose logits are those of two models, in shares: the head is linear and both have the same.

    Args:
        share_B: of the base model's, for each sequence.
    """
    share_N1 = share_B.repeat_interleave(states.valid_BT.sum(dim=1))[:, None]
    mixed_ND = states.hidden_ND.float().lerp(base.hidden_ND.float(), share_N1)
    return replace(states, hidden_ND=mixed_ND.to(states.hidden_ND.dtype))
