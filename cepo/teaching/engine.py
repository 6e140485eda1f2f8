"""A transformers model with PEFT adapters behind the Scorer protocol: one base, the recent policies beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from cepo.adapters import AdapterCache
from cepo.contracts import BASE_POLICY, ImageRef, PolicyProof, PolicyRef
from cepo.errors import PolicyError
from cepo.forward import ResponseStates, canary_logp, load_causal_lm, response_states
from cepo.image_cache import ReadImage, no_images
from cepo.pixels import Patches
from cepo.rendering import Renderer
from cepo.settings import Settings
from cepo.teaching import measures
from cepo.teaching.base import Base
from cepo.teaching.handler import Likeliest, Logps, Pair
from cepo.telemetry import loading
from cepo.tree import passes

TOKENS_PER_PASS = 32768
"""Distinct tokens of one forward pass; what several contexts or responses begin with counts once."""

Take = Callable[[ResponseStates, Sequence[int]], list[Any]]
"""What is wanted of the states of a pass, and which pairs they belong to: one item for each."""


class TransformersScorer:
    """Scores on one thread, so that a pass never meets a half-switched adapter."""

    def __init__(
        self,
        settings: Settings,
        renderer: Renderer,
        adapters: AdapterCache,
        read_image: ReadImage = no_images,
        base: Base | None = None,
    ) -> None:
        """Scores on a base of its own, loaded here, or on one that a learner lends."""
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._renderer = renderer
        self._adapters = adapters
        self._read_image = read_image
        self._keep = settings.max_loras
        self._base = base or Base(load_causal_lm(settings.model, settings.dtype, settings.device))
        self._proofs: dict[str, PolicyProof] = {}
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="score")

    async def load(self, policy: PolicyRef) -> PolicyProof:
        """Loads an adapter if it is not resident, and proves what was bound.

        Raises:
            PolicyError: the adapter's bytes are wrong, or no module took its weights.
        """
        async with self._lock:
            if policy.name not in self._proofs:
                with loading(policy):
                    folder = None if policy == BASE_POLICY else await self._adapters.folder(policy)
                    self._proofs[policy.name] = await self._on_thread(self._bind, policy, folder)
            proof = self._proofs[policy.name] = self._proofs.pop(policy.name)  # the last in the order of use
            return proof

    async def score(self, pairs: Sequence[Pair], temperature: float, policy: PolicyRef) -> list[Logps]:
        return await self._measure(pairs, temperature, policy, lambda states, _: measures.logps(states))

    async def likeliest(self, pairs: Sequence[Pair], k: int, temperature: float, policy: PolicyRef) -> list[Likeliest]:
        return await self._measure(pairs, temperature, policy, lambda states, _: measures.likeliest(states, k))

    async def gather(
        self, pairs: Sequence[Pair], ids: Sequence[bytes], temperature: float, policy: PolicyRef
    ) -> list[Likeliest]:
        return await self._measure(
            pairs, temperature, policy, lambda states, rows: measures.gather(states, [ids[row] for row in rows])
        )

    async def pool(self, pairs: Sequence[Pair], policy: PolicyRef) -> list[tuple[float, ...]]:
        return await self._measure(pairs, 1.0, policy, lambda states, _: measures.pooled(states))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _measure(self, pairs: Sequence[Pair], temperature: float, policy: PolicyRef, take: Take) -> list[Any]:
        await self.load(policy)  # another group's load may have dropped it since
        images = dict.fromkeys(image for pair in pairs for image in pair.images)
        data = {image: await self._read_image(image) for image in images}
        return await self._on_thread(self._passed, pairs, data, temperature, policy, take)

    async def _on_thread(self, work: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def _bind(self, policy: PolicyRef, folder: Path | None) -> PolicyProof:
        with self._base.lent():
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

    @torch.no_grad()
    def _passed(
        self,
        pairs: Sequence[Pair],
        data: Mapping[ImageRef, bytes],
        temperature: float,
        policy: PolicyRef,
        take: Take,
    ) -> list[Any]:
        def patches(image: ImageRef) -> Patches:
            return self._renderer.pixels.patches(image, data[image])

        found: list[Any] = [None] * len(pairs)
        for rows in passes([pair.context_ids + pair.response_ids for pair in pairs], TOKENS_PER_PASS):
            contexts, responses = [pairs[i].context_ids for i in rows], [pairs[i].response_ids for i in rows]
            with self._base.lent():
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
        return found


def nearer(states: ResponseStates, base: ResponseStates, share_B: Tensor) -> ResponseStates:
    """States whose logits are those of two models, in shares: the head is linear and both have the same.

    Args:
        share_B: of the base model's, for each sequence.
    """
    share_N1 = share_B.repeat_interleave(states.valid_BT.sum(dim=1))[:, None]
    mixed_ND = states.hidden_ND.float().lerp(base.hidden_ND.float(), share_N1)
    return replace(states, hidden_ND=mixed_ND.to(states.hidden_ND.dtype))
