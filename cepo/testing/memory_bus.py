"""A bus within one process, for tests."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from cepo.errors import UserError, WireError
from cepo.messages.groups import PolicyRef, StageMessage
from cepo.messages.wire import to_bytes
from cepo.service.metrics import UNREADABLE
from cepo.service.protocol import Delivery, ItemId, delivery_of, kind_of


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

    def __init__(
        self, claim_seconds: float = 10.0, clock: Callable[[], float] = time.monotonic, max_deliveries: int = 5
    ) -> None:
        """Creates an empty bus.

        Args:
            claim_seconds: an entry that its consumer has not renewed for this long is delivered again.
            clock: returns the seconds by which claims age.
            max_deliveries: the delivery at which an entry that cannot be read moves to `unreadable`.
        """
        self.unreadable: list[tuple[str, bytes]] = []
        """Type and body of the entries that could not be read."""
        self._claim_seconds = claim_seconds
        self._clock = clock
        self._max_deliveries = max_deliveries
        self._holders: dict[str, str] = {}
        self._streams: dict[str, dict[str, _Entry]] = defaultdict(dict)
        self._numbers = itertools.count(1)
        self._changed = asyncio.Condition()
        self._listeners: list[asyncio.Queue[PolicyRef]] = []

    async def publish(self, stream: str, messages: Sequence[StageMessage]) -> None:
        for message in messages:
            await self.put(stream, type(message).__name__, to_bytes(message))

    async def put(self, stream: str, name: str, body: bytes) -> None:
        """Appends an entry as it is; it may be one that cannot be read."""
        async with self._changed:
            self._streams[stream][f"{next(self._numbers)}-0"] = _Entry(name, body, time.time())
            self._changed.notify_all()

    async def lose(self, stream: str) -> None:
        """Deletes all entries of a stream, as a Redis does that loses its newest writes."""
        self._streams[stream].clear()

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
            taken = [self._take(stream, i, consumer) for i in free[:count]]
            return [item for item in taken if item is not None]

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

    async def ends(self, stream: str) -> tuple[ItemId, ItemId] | None:
        numbers = [int(i.partition("-")[0]) for i in self._streams[stream]]
        return ((min(numbers), 0), (max(numbers), 0)) if numbers else None

    @asynccontextmanager
    async def lease(self, run: str, holder: str) -> AsyncIterator[None]:
        if run in self._holders:
            raise UserError(f"run {run}: the trainer at {self._holders[run]} works on it; stop that trainer first")
        self._holders[run] = holder
        try:
            yield
        finally:
            del self._holders[run]

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

    def _take(self, stream: str, entry_id: str, consumer: str) -> Delivery | None:
        entry = self._streams[stream][entry_id]
        entry.consumer, entry.since, entry.deliveries = consumer, self._clock(), entry.deliveries + 1
        try:
            fields = {b"type": entry.name.encode(), b"body": entry.body}
            item = delivery_of(stream, entry_id.encode(), fields, entry.deliveries)
        except WireError:
            if entry.deliveries >= self._max_deliveries:
                del self._streams[stream][entry_id]
                self.unreadable.append((entry.name, entry.body))
                UNREADABLE.labels(kind_of(stream)).inc()
            return None
        return replace(item, published_at=entry.published_at)
