"""Groups that wait for the scorer at the same time share a pass; each has its own seconds and its own errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cepo.messages.groups import BASE_POLICY, Ask, ContextName, PolicyProof, PolicyRef
from cepo.model.forward import load_causal_lm
from cepo.model.shared import SharedModel
from cepo.net.settings import Settings
from cepo.service.adapters import AdapterCache
from cepo.teaching.engine import TransformersScorer
from cepo.teaching.handler import Pair, make_handler
from tests.helpers.factories import make_scored, make_task
from tests.helpers.scorers import MODEL, RENDERER, no_adapters

torch.set_num_threads(1)
GROUPS = [[Pair((5, 6, 7, at), (8, 9 + at)), Pair((5, 6, 7, at), (10,))] for at in range(6)]
OUTSIDE = [Pair((5, 6), (10**6, 7))]
"""A group with a token id outside the vocabulary."""
pytestmark = pytest.mark.asyncio(loop_scope="module")


class CountedBase(SharedModel):
    """A shared model that counts the passes."""

    passes = 0

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with super().exclusive():
            self.passes += 1
            yield


class CountedScorer(TransformersScorer):
    """A scorer that counts its calls. A call is counted just before it waits for its pass."""

    calls = 0

    async def load(self, policy: PolicyRef) -> PolicyProof:
        proof = await super().load(policy)
        self.calls += 1
        return proof


async def started(folder: Path, concurrency: int = 8) -> tuple[CountedScorer, CountedBase]:
    """Returns a scorer with the base model loaded, and its shared model."""
    base = CountedBase(load_causal_lm(MODEL, "float32", "cpu"))
    settings = Settings(model=MODEL, dtype="float32", concurrency=concurrency)
    scorer = CountedScorer(settings, RENDERER, AdapterCache(folder, no_adapters, keep=1), base=base)
    await scorer.load(BASE_POLICY)
    base.passes = scorer.calls = 0
    return scorer, base


async def at_once(scorer: CountedScorer, base: SharedModel, *calls: Any) -> list[Any]:
    """The values or the error of each of a scorer's first calls; all of them came before its first pass began."""
    with base.lock:
        tasks = [asyncio.ensure_future(call) for call in calls]
        while scorer.calls < len(calls):
            await asyncio.sleep(0.01)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [result if isinstance(result, BaseException) else result.values for result in results]


async def test_what_waits_is_scored_in_one_pass(tmp_path: Path) -> None:
    scorer, base = await started(tmp_path)
    found = await at_once(scorer, base, *(scorer.score(pairs, 1.0, BASE_POLICY) for pairs in GROUPS))
    assert base.passes <= 2  # the first may have been taken before the others came
    for pairs, rows in zip(GROUPS, found, strict=True):
        for row, wanted in zip(rows, (await scorer.score(pairs, 1.0, BASE_POLICY)).values, strict=True):
            assert row == pytest.approx(wanted, abs=1e-5)


async def test_only_what_is_measured_alike_goes_together(tmp_path: Path) -> None:
    scorer, base = await started(tmp_path)
    calls = [scorer.score(GROUPS[0], 1.0, BASE_POLICY), scorer.score(GROUPS[0], 0.5, BASE_POLICY)]
    cold, warm, pooled = await at_once(scorer, base, *calls, scorer.pool(GROUPS[0], BASE_POLICY))
    assert base.passes == 3
    assert cold != warm
    assert len(pooled[0]) == base.model.config.hidden_size


async def test_with_a_concurrency_of_one_a_group_is_always_alone(tmp_path: Path) -> None:
    scorer, base = await started(tmp_path, concurrency=1)
    found = await at_once(scorer, base, *(scorer.score(pairs, 1.0, BASE_POLICY) for pairs in GROUPS))
    assert base.passes == len(GROUPS)
    assert found == [(await scorer.score(pairs, 1.0, BASE_POLICY)).values for pairs in GROUPS]


async def test_groups_share_a_pass_as_long_as_they_are_small(tmp_path: Path) -> None:
    scorer, base = await started(tmp_path)
    large = [Pair(tuple(3 + (at * i) % 400 for i in range(1500)), (8, 9)) for at in range(1, 5)]
    await at_once(scorer, base, *(scorer.score([pair], 1.0, BASE_POLICY) for pair in large))
    assert 2 <= base.passes <= 3  # two groups fill a pass


async def test_a_bad_group_fails_alone(tmp_path: Path) -> None:
    scorer, base = await started(tmp_path)
    groups = [*GROUPS[:3], OUTSIDE, *GROUPS[3:]]
    found = await at_once(scorer, base, *(scorer.score(pairs, 1.0, BASE_POLICY) for pairs in groups))
    assert isinstance(found.pop(3), IndexError)
    assert found == [(await scorer.score(pairs, 1.0, BASE_POLICY)).values for pairs in GROUPS]


async def test_a_groups_seconds_are_those_of_its_scoring(tmp_path: Path) -> None:
    scorer, base = await started(tmp_path)
    handle = make_handler(scorer, RENDERER, 200)
    groups = [make_scored([1.0, 0.0], make_task(asks=(Ask(context=ContextName.ANSWER),))) for _ in range(5)]
    with base.lock:
        tasks = [asyncio.ensure_future(handle(group)) for group in groups]
        await asyncio.sleep(0.3)
        begun = time.perf_counter()
    found = [(await task).seconds for task in tasks]
    assert all(seconds > 0 for seconds in found)
    assert sum(found) < time.perf_counter() - begun
