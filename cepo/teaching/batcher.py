"""Collects the requests that arrive while the model is busy into batches, one forward pass each.

All state belongs to the event loop: `submit` appends to the queue, one worker task takes batches from it, and each
caller waits for the future of its own request. The model runs elsewhere, in the function given as `run`.

Example: a batch has room for 4,096 tokens. While a pass runs, four requests arrive: A (policy 1, 1,000 tokens),
B (policy 2, 500), C (policy 1, 2,000) and D (policy 1, 3,000). The next pass serves A and C, because B is for another
policy and D does not fit. B and D follow, each in a pass of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cepo.messages.groups import ImageRef, PolicyRef
from cepo.model.forward import ResponseStates
from cepo.teaching.handler import Pair, Scored

Take = Callable[[ResponseStates, Sequence[int]], list[Any]]
"""Reads one value per sequence from the states of a pass; its second argument holds the indices of their pairs."""

log = logging.getLogger(__name__)


def _future() -> asyncio.Future[Scored[Any]]:
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False)
class ScoreRequest:
    """The pairs of one group, and the future of their values."""

    pairs: Sequence[Pair]
    data: Mapping[ImageRef, bytes]
    """The bytes of the pairs' images."""
    temperature: float
    policy: PolicyRef
    take: Take
    scored: asyncio.Future[Scored[Any]] = field(default_factory=_future)

    @cached_property
    def tokens(self) -> int:
        """The tokens of the responses and of the distinct contexts."""
        contexts = {pair.context_ids for pair in self.pairs}
        return sum(map(len, contexts)) + sum(len(pair.response_ids) for pair in self.pairs)

    def compatible(self, other: ScoreRequest) -> bool:
        """Whether one pass can serve both requests."""
        return (self.take, self.temperature, self.policy) == (other.take, other.temperature, other.policy)


class Batcher:
    """Serves requests in order of arrival; compatible requests that wait share a pass."""

    def __init__(
        self, run: Callable[[Sequence[ScoreRequest]], Awaitable[list[Scored[Any]]]], max_requests: int, max_tokens: int
    ) -> None:
        """Makes a batcher with an empty queue.

        Args:
            run: runs one pass over a batch and returns one result per request.
            max_requests: most requests of a batch.
            max_tokens: most tokens of a batch; a larger request is a batch of its own.
        """
        self._run = run
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._queue: list[ScoreRequest] = []
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, request: ScoreRequest) -> Scored[Any]:
        """Returns the values of the request's pairs; raises the error of the pass that scored it alone."""
        self._queue.append(request)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(), context=Context())  # not the log ids of this caller
        return await request.scored

    async def _work(self) -> None:
        """Serves batches until the queue is empty."""
        batch: list[ScoreRequest] = []
        try:
            while batch := self._next_batch():
                await self._serve(batch)
        finally:  # a cancelled worker leaves no caller waiting
            for request in (*batch, *self._queue):
                request.scored.cancel()
            self._queue.clear()

    def _next_batch(self) -> list[ScoreRequest]:
        """Takes the first request from the queue, and the compatible ones that fit; empty if no request waits."""
        waiting = [request for request in self._queue if not request.scored.cancelled()]
        batch: list[ScoreRequest] = []
        room = self._max_tokens
        for request in waiting:
            fits = not batch or (request.compatible(batch[0]) and request.tokens <= room)
            if fits and len(batch) < self._max_requests:
                batch.append(request)
                room -= request.tokens
        self._queue = [request for request in waiting if request not in batch]
        return batch

    async def _serve(self, batch: Sequence[ScoreRequest]) -> None:
        """Scores a batch in one pass. If the pass fails, scores each request alone, so that only the bad one fails."""
        try:
            results = await self._run(batch)
        except Exception as error:
            if len(batch) > 1:
                log.exception("a pass of %d groups failed; each is scored alone", len(batch))
                for request in batch:
                    await self._serve([request])
            elif not batch[0].scored.cancelled():
                batch[0].scored.set_exception(error)
            return
        for request, scored in zip(batch, results, strict=True):
            if not request.scored.cancelled():
                request.scored.set_result(scored)
