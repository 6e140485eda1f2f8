"""Which requests share a pass, and the result or the error that each caller gets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cepo.messages.groups import BASE_POLICY, PolicyRef
from cepo.teaching.batcher import Batcher, ScoreRequest
from cepo.teaching.handler import Pair, Scored
from tests.helpers.factories import POLICY

MAX_TOKENS = 4096


def take(states: Any, rows: Sequence[int]) -> list[Any]:
    raise AssertionError("no model runs here")


class Model:
    """Records the tokens of its batches. A pass waits until `turn` is set, and fails if a request has `bad` tokens."""

    def __init__(self, bad: int = -1) -> None:
        self.batches: list[list[int]] = []
        self.turn = asyncio.Event()
        self.bad = bad

    async def run(self, batch: Sequence[ScoreRequest]) -> list[Scored[Any]]:
        self.batches.append([request.tokens for request in batch])
        await self.turn.wait()
        if any(request.tokens == self.bad for request in batch):
            raise IndexError(f"{self.bad} tokens")
        return [Scored([request.tokens], 1.0) for request in batch]


def request(tokens: int, policy: PolicyRef = BASE_POLICY, temperature: float = 1.0) -> ScoreRequest:
    return ScoreRequest([Pair((5,) * (tokens - 1), (6,))], {}, temperature, policy, take)


async def served(model: Model, *requests: ScoreRequest, at_most: int = 4) -> list[Any]:
    """Returns the value or the error of each request; all of them arrive during the pass of an earlier request."""
    batcher = Batcher(model.run, at_most, MAX_TOKENS)
    first = asyncio.create_task(batcher.submit(request(1)))
    while not model.batches:
        await asyncio.sleep(0)
    tasks = [asyncio.create_task(batcher.submit(each)) for each in requests]
    await asyncio.sleep(0)
    model.turn.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert (await first).values == [1]
    assert model.batches.pop(0) == [1]
    return [result if isinstance(result, BaseException) else result.values[0] for result in results]


async def test_the_worked_example_of_the_module() -> None:
    model = Model()
    requests = [request(1000), request(500, POLICY), request(2000), request(3000)]
    assert await served(model, *requests) == [1000, 500, 2000, 3000]
    assert model.batches == [[1000, 2000], [500], [3000]]


async def test_a_batch_has_a_largest_number_of_requests() -> None:
    model = Model()
    assert await served(model, *(request(10 + at) for at in range(5)), at_most=2) == [10, 11, 12, 13, 14]
    assert model.batches == [[10, 11], [12, 13], [14]]


async def test_a_request_larger_than_a_batch_is_served_alone() -> None:
    model = Model()
    assert await served(model, request(MAX_TOKENS + 1), request(2)) == [MAX_TOKENS + 1, 2]
    assert model.batches == [[MAX_TOKENS + 1], [2]]


async def test_after_a_failed_pass_each_request_is_scored_alone() -> None:
    model = Model(bad=7)
    results = await served(model, request(5), request(7), request(6))
    assert isinstance(results.pop(1), IndexError)
    assert results == [5, 6]
    assert model.batches == [[5, 7, 6], [5], [7], [6]]


async def test_a_request_whose_caller_left_is_not_scored() -> None:
    model = Model()
    batcher = Batcher(model.run, 1, MAX_TOKENS)
    tasks = [asyncio.create_task(batcher.submit(request(tokens))) for tokens in (2, 3, 4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    model.turn.set()
    assert [(await tasks[at]).values for at in (0, 2)] == [[2], [4]]
    assert model.batches == [[2], [4]]


async def test_a_cancelled_pass_leaves_no_caller_waiting() -> None:
    async def run(batch: Sequence[ScoreRequest]) -> list[Scored[Any]]:
        raise asyncio.CancelledError  # as from an executor that is shut down

    batcher = Batcher(run, 1, MAX_TOKENS)
    tasks = [asyncio.create_task(batcher.submit(request(tokens))) for tokens in (2, 3)]
    for task in tasks:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
