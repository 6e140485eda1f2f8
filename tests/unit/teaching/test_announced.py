"""An announced policy is loaded before a task names it, and the earlier policy stays loaded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from cepo.messages.groups import PolicyRef
from cepo.net.settings import Settings
from cepo.service.adapters import AdapterCache, resident
from cepo.teaching.engine import TransformersScorer
from cepo.testing import MemoryBus
from tests.helpers.scorers import MODEL, RENDERER, random_adapter
from tests.unit.teaching.test_teacher import make_pairs

torch.set_num_threads(1)


async def test_what_is_announced_is_loaded_while_a_pass_of_the_version_before_goes_on(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    published = dict(random_adapter(tmp_path_factory.mktemp("peft"), seed) for seed in (1, 2))
    fetched: list[PolicyRef] = []

    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        fetched.append(policy)
        return published[policy]

    bus, cache = MemoryBus(), AdapterCache(tmp_path, fetch, keep=4)
    scorer = TransformersScorer(Settings(model=MODEL, dtype="float32", max_loras=2), RENDERER, cache)
    old, new = published
    async with asyncio.timeout(200), resident(scorer, bus, cache):
        before = (await scorer.score(make_pairs(), 1.0, old)).values
        scoring = asyncio.create_task(scorer.score(make_pairs(), 1.0, old))
        while fetched != [old, new]:
            await bus.announce(new)
            await asyncio.sleep(0.01)
        assert (await scoring).values == before
        assert (await scorer.score(make_pairs(), 1.0, new)).values != before
        assert (await scorer.score(make_pairs(), 1.0, old)).values == before
        assert fetched == [old, new]
