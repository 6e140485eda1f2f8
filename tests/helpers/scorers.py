"""The teacher's real engine on the tiny model, with the adapters of a dictionary or without any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import cepo.tiny
from cepo.messages.groups import PolicyRef
from cepo.net.settings import Settings
from cepo.prompts.renderer import Renderer
from cepo.service import adapters
from cepo.service.adapters import AdapterCache
from cepo.teaching.engine import TransformersScorer

MODEL = str(cepo.tiny.path())
RENDERER = Renderer(MODEL)
NOTHING: Mapping[PolicyRef, dict[str, bytes]] = MappingProxyType({})


async def no_adapters(policy: PolicyRef) -> dict[str, bytes]:
    """What a cache without a trainer fetches: a test that comes here has asked for a policy by mistake."""
    raise AssertionError(policy)


def make_scorer(
    folder: Path, published: Mapping[PolicyRef, dict[str, bytes]] = NOTHING, max_loras: int = 2
) -> TransformersScorer:
    """The engine with its adapter cache in a folder, filled from `published`."""

    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        return published[policy]

    settings = Settings(model=MODEL, dtype="float32", max_loras=max_loras)
    return TransformersScorer(settings, RENDERER, AdapterCache(folder, fetch, keep=max_loras + 2))


def random_adapter(folder: Path, seed: int) -> tuple[PolicyRef, dict[str, bytes]]:
    """An adapter of stock PEFT whose random weights change the log-probs; its version is the seed."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    peft.save_pretrained(folder)
    files = adapters.read(folder)
    return PolicyRef(version=seed, sha256=adapters.digest(files)), files
