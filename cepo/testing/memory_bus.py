"""A bus within one process, for tests."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from cepo.messages.groups import PolicyRef, StageMessage
from cepo.messages.wire import STAGE_MESSAGES, from_bytes, to_bytes
from cepo.service.bus import Delivery


@dataclass
class _Entry:
    name: str
    body: bytes
    published_at: float
    consumer: str = ""
    since: float = 0.0
    deliveries: int = 0


class MemoryBus:
    """A `Bus` within one process. It encodes messages as Redis holds them, so tests also cover the wire format."""

    def __init__(self, claim_seconds: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Creates an empty bus.

        Args:
            claim_seconds: an entry that its consumer has not renewed for this long is delivered again.
            clock: returns the seconds by which claims age.
        """
        self._claim_seconds = claim_seconds
        self._clock = clock
        self._streams: dict[str, dict[str, _Entry]] = defaultdict(dict)
        self._numbers = itertools.count(1)
        self._changed = asyncio.Condition()
        self._listeners: list[asyncio.Queue[PolicyRef]] = []

    async def publish(self, stream: str, messages: Sequence[StageMessage]) -> None:
        async with self._changed:
            for message in messages:
                entry = _Entry(type(message).__name__, to_bytes(message), time.time())
                self._streams[stream][str(next(self._numbers))] = entry
            self._changed.notify_all()

    async def receive(self, stream: str, consumer: str, count: int, wait_seconds: float) -> list[Delivery]:
        deadline = time.monotonic() + wait_seconds
        async with self._changed:
            while not (free := self._free(stream)):
                left = deadline - time.monotonic()
                if left <= 0:
                    return []
                try:
                    await asyncio.wait_for(self._changed.wait(), min(left, self._claim_seconds / 4))
                except TimeoutError:
                    continue
            return [self._take(stream, i, consumer) for i in free[:count]]

    async def renew(self, consumer: str, deliveries: Sequence[Delivery]) -> None:
        for item in deliveries:
            entry = self._streams[item.stream].get(item.id)
            if entry is not None:
                entry.consumer, entry.since = consumer, self._clock()

    async def complete(self, delivery: Delivery, stream: str, result: StageMessage | None) -> bool:
        if self._streams[delivery.stream].pop(delivery.id, None) is None:
            return False
        if result is not None:
            await self.publish(stream, [result])
        return True

    async def depth(self, stream: str) -> int:
        return len(self._streams[stream])

    async def age(self, stream: str) -> float:
        oldest = next(iter(self._streams[stream].values()), None)
        return time.time() - oldest.published_at if oldest else 0.0

    async def announce(self, policy: PolicyRef) -> None:
        for listener in self._listeners:
            listener.put_nowait(policy)

    async def announcements(self) -> AsyncIterator[PolicyRef]:
        listener: asyncio.Queue[PolicyRef] = asyncio.Queue()
        self._listeners.append(listener)
        while True:
            yield await listener.get()

    async def close(self) -> None:
        self._streams.clear()

    def _free(self, stream: str) -> list[str]:
        """Ids of the entries to deliver: those whose claim ran out, or new ones if there are none."""
        now = self._clock()
        entries = self._streams[stream].items()
        abandoned = [i for i, e in entries if e.consumer and now - e.since >= self._claim_seconds]
        return abandoned or [i for i, e in entries if not e.consumer]

    def _take(self, stream: str, entry_id: str, consumer: str) -> Delivery:
        entry = self._streams[stream][entry_id]
        entry.consumer, entry.since, entry.deliveries = consumer, self._clock(), entry.deliveries + 1
        message = from_bytes(STAGE_MESSAGES[entry.name], entry.body)
        return Delivery(stream, entry_id, message, entry.deliveries, entry.published_at)  # type: ignore[arg-type]
