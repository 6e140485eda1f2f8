"""The interface of the work queue: its streams, items and calls. `RedisBus` and `MemoryBus` implement it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, cast

from cepo.errors import WireError
from cepo.messages.groups import PolicyRef, Stage, StageMessage
from cepo.messages.wire import STAGE_MESSAGES, from_bytes

ItemId = tuple[int, int]
"""The id of an item: milliseconds and a sequence number. Later items of a stream have greater ids."""
FAILURES = "failures"
"""The stream of the items that could not be read: their stream, id, error, and their fields as they were, `entry.*`."""


def ready(run: str) -> str:
    """The stream of a run's finished groups, which the trainer reads."""
    return f"ready:{run}"


def stream_of(stage: Stage) -> str:
    return stage.name.lower()


def kind_of(stream: str) -> str:
    """A stream's name without its run. Example: "ready:my-run" -> "ready"."""
    return stream.partition(":")[0]


@dataclass(frozen=True)
class Delivery:
    """An item that was delivered to a worker."""

    stream: str
    id: str
    message: StageMessage
    deliveries: int
    published_at: float
    """Unix time in seconds, by the clock of Redis."""


def delivery_of(stream: str, entry: bytes, fields: Mapping[bytes, bytes], deliveries: int) -> Delivery:
    """The delivery of an entry of a stream.

    Raises:
        WireError: the type is unknown, as that of a newer version may be, or the bytes are not such a message.
    """
    name = fields.get(b"type", b"").decode(errors="replace")
    if name not in STAGE_MESSAGES:
        raise WireError(f"unknown message type {name!r}")
    message = cast(StageMessage, from_bytes(STAGE_MESSAGES[name], fields.get(b"body", b"")))
    published_at = int(entry.partition(b"-")[0]) / 1000  # an entry's id begins with its time in milliseconds
    return Delivery(stream, entry.decode(), message, deliveries, published_at)


class Bus(Protocol):
    """The interface of the queue for stages and the trainer."""

    async def publish(self, stream: str, messages: Sequence[StageMessage]) -> None:
        """Appends items to a stream.

        Raises:
            UserError: this process has lost its lease.
        """
        ...

    async def receive(self, stream: str, consumer: str, count: int, wait_seconds: float) -> list[Delivery]:
        """Returns up to `count` items: reclaimed ones if there are any, otherwise new ones. Waits up to `wait_seconds`.

        Items whose claim expires during the wait may be returned by the next call, so wait less than the claim time.
        An item that cannot be read is left out; at its last delivery it moves to the stream of failures.
        """
        ...

    async def renew(self, consumer: str, deliveries: Sequence[Delivery]) -> None:
        """Renews this worker's claims on items."""
        ...

    async def complete(self, delivery: Delivery, stream: str, result: StageMessage | None) -> bool:
        """Deletes an item and publishes its result, if any, on `stream`; False if another worker finished it.

        Raises:
            UserError: this process has lost its lease.
        """
        ...

    async def depth(self, stream: str) -> int:
        """Number of items in a stream, whether or not a worker holds them."""
        ...

    async def age(self, stream: str) -> float:
        """Seconds since the oldest item in a stream was published; 0 if the stream is empty."""
        ...

    async def ends(self, stream: str) -> tuple[ItemId, ItemId] | None:
        """The ids of the oldest and the newest item in a stream; None if it is empty."""
        ...

    def lease(self, run: str, holder: str) -> AbstractAsyncContextManager[None]:
        """Makes this process the only trainer of a run within the block.

        Args:
            holder: the address of this trainer, for the message that a second trainer shows.

        Raises:
            UserError: another trainer works on the run; within the block: another trainer has taken it over.
        """
        ...

    async def announce(self, policy: PolicyRef) -> None:
        """Announces a policy to engines before a task needs it. An announcement may be lost."""
        ...

    def announcements(self) -> AsyncIterator[PolicyRef]:
        """Yields policies as they are announced, from now on."""
        ...

    async def close(self) -> None: ...
