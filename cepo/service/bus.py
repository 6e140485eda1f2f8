"""The work queue: Redis Streams, with each result published exactly once.

A worker takes an item with `receive` and finishes it with `complete`: one Lua call that publishes the result and
deletes the item, but only if the item is still pending. If a slow worker and the worker that reclaimed its item both
finish, only one of them publishes. If a worker crashes before `complete`, its item stays pending. An item is reclaimed
when its worker has not renewed its claim for `claim_seconds`, and carries the number of its deliveries. A stream holds
only unfinished items. A worker sends only the part that it adds to a message, because Redis has the rest.
`cepo.testing.MemoryBus` passes the same conformance tests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
    RedisError,
    ResponseError,
    TimeoutError as RedisTimeoutError,
)

from cepo.errors import UserError, WireError
from cepo.messages.groups import PolicyRef, Stage, StageMessage
from cepo.messages.wire import STAGE_MESSAGES, around, from_bytes, to_bytes
from cepo.net.connections import no_redis
from cepo.net.settings import Settings
from cepo.net.tls import redis_options

GROUP = "workers"
ANNOUNCEMENTS = "{cepo}:policies"
ADDRESS_HINT = "write redis://[:password@]host:port/0, or rediss:// for TLS; percent-encode signs in the password"
MAX_CONNECTIONS = 16
"""Connections per process. Concurrent calls beyond that wait for a free connection."""
START_SECONDS = 3.0
"""Timeout for a Redis that has just been started and is still loading its data."""
RETRY_SECONDS = 60.0
"""Timeout for a Redis that has become unreachable."""
log = logging.getLogger(__name__)

_COMPLETE = """
local input = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
local body = ARGV[4]
if ARGV[5] ~= '' then
    local inner, size = input[2][4], ''
    local left = #inner
    while left > 127 do
        size = size .. string.char(left % 128 + 128)
        left = math.floor(left / 128)
    end
    body = ARGV[5] .. size .. string.char(left) .. inner .. body
end
if ARGV[3] ~= '' then redis.call('XADD', KEYS[2], '*', 'type', ARGV[3], 'body', body) end
return 1
"""
"""Arguments: group, id of the item, type and body of the result, and a protobuf tag. With a tag, the body lacks the
field that contains the item, and the script adds that field from the stream."""
_AGE = """
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
if #first == 0 then return 0 end
local time = redis.call('TIME')
return time[1] * 1000 + math.floor(time[2] / 1000) - string.match(first[1][1], '^%d+')
"""


def ready(run: str) -> str:
    """The stream of a run's finished groups, which the trainer reads."""
    return f"ready:{run}"


def stream_of(stage: Stage) -> str:
    return stage.name.lower()


@dataclass(frozen=True)
class Delivery:
    """An item that was delivered to a worker."""

    stream: str
    id: str
    message: StageMessage
    deliveries: int
    published_at: float
    """Unix time in seconds, by the clock of Redis."""


class Bus(Protocol):
    """The interface of the queue for stages and the trainer."""

    async def publish(self, stream: str, messages: Sequence[StageMessage]) -> None:
        """Appends items to a stream."""
        ...

    async def receive(self, stream: str, consumer: str, count: int, wait_seconds: float) -> list[Delivery]:
        """Returns up to `count` items: reclaimed ones if there are any, otherwise new ones. Waits up to `wait_seconds`.

        Items whose claim expires during the wait may be returned by the next call, so wait less than the claim time.
        """
        ...

    async def renew(self, consumer: str, deliveries: Sequence[Delivery]) -> None:
        """Renews this worker's claims on items."""
        ...

    async def complete(self, delivery: Delivery, stream: str, result: StageMessage | None) -> bool:
        """Deletes an item and publishes its result, if any, on `stream`; False if another worker finished it."""
        ...

    async def depth(self, stream: str) -> int:
        """Number of items in a stream, whether or not a worker holds them."""
        ...

    async def age(self, stream: str) -> float:
        """Seconds since the oldest item in a stream was published; 0 if the stream is empty."""
        ...

    async def announce(self, policy: PolicyRef) -> None:
        """Announces a policy to engines before a task needs it. An announcement may be lost."""
        ...

    def announcements(self) -> AsyncIterator[PolicyRef]:
        """Yields policies as they are announced, from now on."""
        ...

    async def close(self) -> None: ...


class RedisBus:
    """The bus on Redis 6.2 or newer. It reconnects after a restart of the server."""

    def __init__(self, url: str, claim_seconds: float = 10.0, certificates: str = "") -> None:
        """Does not connect yet.

        Args:
            certificates: folder of ca.crt, tls.crt and tls.key, for a `rediss://` URL.

        Raises:
            UserError: the URL is invalid.
        """
        self._tls = redis_options(url, certificates)
        retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), retries=int(RETRY_SECONDS))
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=MAX_CONNECTIONS,
                timeout=RETRY_SECONDS,
                retry=retry,
                retry_on_error=[RedisConnectionError, RedisTimeoutError, OSError],
                health_check_interval=30,
                **self._tls,
            )
        except ValueError:
            raise UserError(f"CEPO_REDIS_URL: {ADDRESS_HINT}") from None  # the cause would quote a password
        self._redis: Redis = Redis.from_pool(pool)
        self._claim_milliseconds = int(claim_seconds * 1000)
        self._complete = self._redis.register_script(_COMPLETE)
        self._age = self._redis.register_script(_AGE)
        self._known: set[str] = set()
        self._cursors: dict[str, bytes] = {}
        self._next_claim: dict[str, float] = {}

    @classmethod
    async def connect(cls, settings: Settings, patience: float = START_SECONDS) -> Self:
        """Connects a service; retries for `patience` seconds while Redis does not answer.

        Raises:
            UserError: Redis rejects the connection.
            Unreachable: Redis does not answer.
        """
        bus, deadline = (
            cls(settings.redis_url, settings.claim_seconds, settings.certificates),
            time.monotonic() + patience,
        )
        once = Retry(ExponentialBackoff(), 0)
        async with Redis.from_url(settings.redis_url, retry=once, socket_connect_timeout=3, **bus._tls) as probe:
            while True:
                try:
                    await cast(Any, probe.ping())
                    return bus
                except (RedisError, OSError) as error:
                    problem = no_redis(settings.redis_url, error, "set CEPO_REDIS_URL")
                    if isinstance(problem, UserError) or time.monotonic() >= deadline:
                        raise problem from error
                await asyncio.sleep(0.2)

    async def publish(self, stream: str, messages: Sequence[StageMessage]) -> None:
        async with self._redis.pipeline(transaction=True) as pipeline:
            for message in messages:
                pipeline.xadd(_key(stream), {"type": type(message).__name__, "body": to_bytes(message)})
            await pipeline.execute()

    async def receive(self, stream: str, consumer: str, count: int, wait_seconds: float) -> list[Delivery]:
        try:
            await self._create_group(stream)
            if time.monotonic() >= self._next_claim.get(stream, 0.0):
                abandoned = await self._claim(stream, consumer, count)
                if abandoned:
                    return abandoned
            block, new = max(1, int(wait_seconds * 1000)), {_key(stream): ">"}
            reply: Any = await self._redis.xreadgroup(GROUP, consumer, new, count=count, block=block)
            return _deliveries(stream, [(i, fields, 1) for _, entries in reply or [] for i, fields in entries])
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self._known.discard(stream)  # the server lost its data: create the group again
            return []

    async def renew(self, consumer: str, deliveries: Sequence[Delivery]) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for item in deliveries:
                pipeline.xclaim(_key(item.stream), GROUP, consumer, 0, [item.id], justid=True)
            await pipeline.execute(raise_on_error=False)

    async def complete(self, delivery: Delivery, stream: str, result: StageMessage | None) -> bool:
        name, body, tag = "", b"", b""
        if result is not None:
            name, (body, tag) = type(result).__name__, around(delivery.message, result)
        keys, args = [_key(delivery.stream), _key(stream)], [GROUP, delivery.id, name, body, tag]
        return bool(await cast(Any, self._complete(keys=keys, args=args)))

    async def depth(self, stream: str) -> int:
        return int(await self._redis.xlen(_key(stream)))

    async def age(self, stream: str) -> float:
        return max(0, await cast(Any, self._age(keys=[_key(stream)]))) / 1000

    async def announce(self, policy: PolicyRef) -> None:
        await cast(Any, self._redis.publish(ANNOUNCEMENTS, to_bytes(policy)))

    async def announcements(self) -> AsyncIterator[PolicyRef]:
        while True:
            try:
                async with self._redis.pubsub() as channel:
                    await channel.subscribe(ANNOUNCEMENTS)
                    async for item in channel.listen():
                        if item["type"] == "message":
                            yield from_bytes(PolicyRef, item["data"])
            except (RedisError, OSError, WireError):
                await asyncio.sleep(1.0)  # a lost announcement does no harm: tasks name their policy

    async def close(self) -> None:
        await self._redis.aclose()

    async def _create_group(self, stream: str) -> None:
        if stream in self._known:
            return
        try:
            await self._redis.xgroup_create(_key(stream), GROUP, id="0", mkstream=True)  # "$" would lose earlier items
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._known.add(stream)

    async def _claim(self, stream: str, consumer: str, count: int) -> list[Delivery]:
        idle, start = self._claim_milliseconds, self._cursors.get(stream, b"0-0")  # one call scans few items
        claimed = await self._redis.xautoclaim(_key(stream), GROUP, consumer, idle, start_id=start, count=count)
        self._cursors[stream] = claimed[0]
        if claimed[0] == b"0-0":  # the whole stream was scanned; repeat in a quarter of the claim time
            self._next_claim[stream] = time.monotonic() + idle / 4000
        entries = [(i, fields) for i, fields in claimed[1] if fields]
        if not entries:
            return []
        pending = await self._redis.xpending_range(_key(stream), GROUP, "-", "+", 10_000, consumername=consumer)
        times: dict[Any, Any] = {row["message_id"]: row["times_delivered"] for row in pending}
        return _deliveries(stream, [(i, fields, times.get(i, 1)) for i, fields in entries])


def _key(stream: str) -> str:
    return "{cepo}:" + stream  # one hash slot, so that the script also runs on a cluster


def _deliveries(stream: str, entries: list[tuple[bytes, dict[bytes, bytes], int]]) -> list[Delivery]:
    """Parses items. An invalid item stays pending and is logged whenever it is claimed; it does not stop the others."""
    parsed: list[Delivery] = []
    for entry, fields, deliveries in entries:
        try:
            parsed.append(_delivery(stream, entry, fields, deliveries))
        except WireError as error:
            log.error("%s %s cannot be read: %s", stream, entry.decode(), error)
    return parsed


def _delivery(stream: str, entry: bytes, fields: dict[bytes, bytes], deliveries: int) -> Delivery:
    name = fields.get(b"type", b"").decode(errors="replace")
    if name not in STAGE_MESSAGES:
        raise WireError(f"unknown message type {name!r}")
    message = cast(StageMessage, from_bytes(STAGE_MESSAGES[name], fields.get(b"body", b"")))
    published_at = int(entry.partition(b"-")[0]) / 1000  # an entry's id begins with its time in milliseconds
    return Delivery(stream, entry.decode(), message, deliveries, published_at)
