"""vLLM's engine loads adapter after adapter, as in a run of weeks."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from safetensors.numpy import load, save

from cepo.messages.groups import BASE_POLICY, PolicyRef, Sampling
from cepo.net.settings import Settings
from cepo.run.deployment import environment
from cepo.service import adapters
from cepo.service.adapters import FILES, AdapterCache
from cepo.service.generator import RolloutPrompt
from tests.helpers.growth import resident_mib, slope
from tests.helpers.scorers import MODEL, RENDERER, random_adapter

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1200)]
LOADS = 500
EVERY = 20
"""Loads between two measurements."""
FIRST = 5
"""Measurements that are left out, because caches and the heap fill then."""


async def test_an_engine_that_loads_500_adapters_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's process and this one together; each version samples a prompt of 20 tokens."""
    settings = Settings(
        model=MODEL, dtype="float32", device="cpu", threads=1, max_model_len=128, max_num_seqs=8, max_lora_rank=8,
        lora_targets="q_proj,down_proj",
    )  # fmt: skip
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    from services.rollout.engine import VllmGenerator  # imports vLLM, which reads the environment

    _, files = random_adapter(tmp_path / "made", 1)
    tensors = load(files[FILES[1]])
    name = min(tensors)

    def version(number: int) -> dict[str, bytes]:
        return files | {FILES[1]: save({**tensors, name: tensors[name] * (1 + number / 1000)}, {"format": "pt"})}

    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        return version(policy.version)

    generator = VllmGenerator(settings, RENDERER, AdapterCache(tmp_path / "cache", fetch, settings.max_loras + 2))
    ids = tuple(range(10, 30))
    prompt, sampling, used = RolloutPrompt(ids, ids, ()), Sampling(max_tokens=4), []
    try:
        await generator.load(BASE_POLICY)
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        for number in range(1, LOADS + 1):
            policy = PolicyRef(version=number, sha256=adapters.digest(version(number)))
            assert (await generator.load(policy)).bound_modules > 0
            assert len(await generator.generate(prompt, 2, sampling, number, policy)) == 2
            if number % EVERY == 0:
                used.append(resident_mib([process.pid for process in processes]))
    finally:
        generator.close()
    assert len(generator.resident) == settings.max_loras
    assert slope(used[FIRST:]) / EVERY < 0.2, f"MiB after every {EVERY} loads: {used}"
