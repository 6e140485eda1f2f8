"""The work queue: Redis Streams, with each result published exactly once.

A worker takes an item with `receive` and finishes it with `complete`: one Lua call that publishes the result and
deletes the item, but only if the item is still pending. If a slow worker and the worker that reclaimed its item both
finish, only one of them publishes. If a worker crashes before `complete`, its item stays pending. An item is reclaimed
when its worker has not renewed its claim for `claim_seconds`, and carries the number of its deliveries. A stream holds
only unfinished items. A worker sends only the part that it adds to a message, because Redis has the rest. While Redis
refuses writes (no memory, a full disk, a failover), calls wait. `docs/reliability.md` lists the promises.
`cepo.testing.MemoryBus` passes the same conformance tests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar, cast

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
from cepo.messages.groups import PolicyRef, PromptTask, StageMessage
from cepo.messages.wire import around, from_bytes, to_bytes
from cepo.net.connections import shown
from cepo.net.settings import Settings
from cepo.net.tls import redis_options
from cepo.service import scripts
from cepo.service.lease import LEASE_SECONDS, Lease, taken_over
from cepo.service.metrics import UNREADABLE
from cepo.service.protocol import (
    FAILURES as FAILURES,
    Bus as Bus,
    Delivery as Delivery,
    ItemId as ItemId,
    delivery_of as delivery_of,
    kind_of as kind_of,
    ready as ready,
    stream_of as stream_of,
)
from cepo.service.waiting import RETRY_SECONDS, RenewedConnection, answered, answering

T = TypeVar("T")
GROUP = "workers"
ANNOUNCEMENTS = "{cepo}:policies"
ADDRESS_HINT = "write redis://[:password@]host:port/0, or rediss:// for TLS; percent-encode signs in the password"
MAX_CONNECTIONS = 16
"""Connections per process. Concurrent calls beyond that wait for a free connection."""
START_SECONDS = 3.0
"""How long a starting process waits for a Redis at whose address nothing listens."""
SOCKET_SECONDS = 5.0
MAX_FAILURES = 100
"""Length of the stream of failures; older entries are deleted."""
IDLE_CLAIMS = 6
"""A consumer that holds no item and has not asked for one for this many claim times is removed."""
log = logging.getLogger(__name__)


class RedisBus:
    """The bus on Redis 6.2 or newer, or Valkey. It reconnects after a restart of the server."""

    def __init__(
        self,
        url: str,
        claim_seconds: float = 10.0,
        certificates: str = "",
        max_deliveries: int = 5,
        *,
        retry_seconds: float = RETRY_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        """Does not connect yet.

        Args:
            certificates: folder of ca.crt, tls.crt and tls.key, for a `rediss://` URL.
            max_deliveries: the delivery at which an item that cannot be read moves to the stream of failures.

        Raises:
            UserError: the URL is invalid.
        """
        self._address = shown(url).partition("://")[2]
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
                socket_timeout=SOCKET_SECONDS,
                socket_connect_timeout=SOCKET_SECONDS,
                **self._tls,
            )
        except ValueError:
            raise UserError(f"CEPO_REDIS_URL: {ADDRESS_HINT}") from None  # the cause would quote a password
        if self._tls:
            pool.connection_class = RenewedConnection
        self._redis: Redis = Redis.from_pool(pool)
        self._claim_milliseconds = int(claim_seconds * 1000)
        self._max_deliveries = max_deliveries
        self._retry_seconds, self._lease_seconds = retry_seconds, lease_seconds
        self._complete = self._redis.register_script(scripts.COMPLETE)
        self._publish = self._redis.register_script(scripts.PUBLISH)
        self._age = self._redis.register_script(scripts.AGE)
        self._ends = self._redis.register_script(scripts.ENDS)
        self._set_aside = self._redis.register_script(scripts.SET_ASIDE)
        self._forget = self._redis.register_script(scripts.FORGET)
        self._known: set[str] = set()
        self._cursors: dict[str, bytes] = {}
        self._next_claim: dict[str, float] = {}
        self._lease: Lease | None = None
        self._run = ""

    @classmethod
    async def connect(cls, settings: Settings, patience: float = START_SECONDS) -> Self:
        """Connects a service.

        Args:
            patience: seconds to wait while nothing listens; a Redis that is stalled or loads its data is given more.

        Raises:
            UserError: Redis rejects the connection.
            Unreachable: Redis does not answer.
        """
        bus = cls(settings.redis_url, settings.claim_seconds, settings.certificates, settings.max_deliveries)
        await answering(settings.redis_url, bus._tls, patience)
        return bus

    async def publish(self, stream: str, messages: Sequence[StageMessage]) -> None:
        items = [part for message in messages for part in (type(message).__name__, to_bytes(message))]
        keys, proof = self._fence(_key(stream))
        await self._ask(lambda: self._publish(keys=keys, args=[*proof, *items]))

    async def receive(self, stream: str, consumer: str, count: int, wait_seconds: float) -> list[Delivery]:
        try:
            return await self._ask(lambda: self._receive(stream, consumer, count, wait_seconds))
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self._known.discard(stream)  # the server lost its data: create the group again
            return []

    async def renew(self, consumer: str, deliveries: Sequence[Delivery]) -> None:
        async def claims() -> None:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for item in deliveries:
                    pipeline.xclaim(_key(item.stream), GROUP, consumer, 0, [item.id], justid=True)
                await pipeline.execute(raise_on_error=False)

        await self._ask(claims)

    async def complete(self, delivery: Delivery, stream: str, result: StageMessage | None) -> bool:
        name, body, tag = "", b"", b""
        if isinstance(delivery.message, PromptTask) and result is not None:
            name, body = type(result).__name__, to_bytes(result)  # a task is small, and Lua would copy the whole result
        elif result is not None:
            name, (body, tag) = type(result).__name__, around(delivery.message, result)
        keys, proof = self._fence(_key(delivery.stream), _key(stream))
        args = [GROUP, delivery.id, name, body, tag, *proof]
        return bool(await self._ask(lambda: self._complete(keys=keys, args=args)))

    async def depth(self, stream: str) -> int:
        return int(await self._ask(lambda: self._redis.xlen(_key(stream))))

    async def age(self, stream: str) -> float:
        return max(0, await self._ask(lambda: cast(Any, self._age(keys=[_key(stream)])))) / 1000

    async def ends(self, stream: str) -> tuple[ItemId, ItemId] | None:
        reply = await self._ask(lambda: cast(Any, self._ends(keys=[_key(stream)])))
        ids = [tuple(map(int, each.split(b"-"))) for each in reply]
        return cast(tuple[ItemId, ItemId], tuple(ids)) if ids else None

    @asynccontextmanager
    async def lease(self, run: str, holder: str) -> AsyncIterator[None]:
        async def call(source: str, key: str, args: list[Any]) -> Any:
            return await self._ask(lambda: self._redis.eval(source, 1, key, *args))

        lease = Lease(call, run, holder, self._lease_seconds)
        async with lease.held():
            self._lease, self._run = lease, run
            try:
                yield
            finally:
                self._lease = None

    async def announce(self, policy: PolicyRef) -> None:
        await self._ask(lambda: cast(Any, self._redis.publish(ANNOUNCEMENTS, to_bytes(policy))))

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

    def _fence(self, *keys: str) -> tuple[list[str], tuple[int | str, str]]:
        """The keys of a script, with its fencing token and process; both are empty without a lease."""
        lease = self._lease
        return ([*keys, lease.key], (lease.token, lease.process)) if lease else (list(keys), ("", ""))

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a call, which waits while Redis restarts or refuses writes. Every call to Redis is made here.

        Raises:
            UserError: this trainer has lost its lease.
            RedisError: Redis still does not answer after `retry_seconds`.
            Unreachable: Redis still refuses after `retry_seconds`.
        """
        if self._lease and self._lease.successor:  # the Redis client may swallow the cancellation of the lease's block
            raise taken_over(self._run, self._lease.successor)
        try:
            return await answered(call, self._redis, self._address, self._retry_seconds)
        except ResponseError as error:
            _, fenced, holder = str(error).partition("FENCED ")
            if fenced:
                raise taken_over(self._run, holder) from error
            raise

    async def _receive(self, stream: str, consumer: str, count: int, wait_seconds: float) -> list[Delivery]:
        await self._create_group(stream)
        if time.monotonic() >= self._next_claim.get(stream, 0.0):
            abandoned = await self._claim(stream, consumer, count)
            if abandoned:
                return abandoned
        block, new = max(1, int(wait_seconds * 1000)), {_key(stream): ">"}
        reply: Any = await self._redis.xreadgroup(GROUP, consumer, new, count=count, block=block)
        return await self._readable(stream, [(i, fields, 1) for _, entries in reply or [] for i, fields in entries])

    async def _create_group(self, stream: str) -> None:
        if stream in self._known:
            return
        try:
            await self._redis.xgroup_create(_key(stream), GROUP, id="0", mkstream=True)  # "$" would lose earlier items
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        UNREADABLE.labels(kind_of(stream))  # a counter that first appears at 1 has no increase for an alert to see
        self._known.add(stream)

    async def _claim(self, stream: str, consumer: str, count: int) -> list[Delivery]:
        idle, start = self._claim_milliseconds, self._cursors.get(stream, b"0-0")  # one call scans few items
        if start == b"0-0":
            await cast(Any, self._forget(keys=[_key(stream)], args=[GROUP, IDLE_CLAIMS * idle]))
        claimed = await self._redis.xautoclaim(_key(stream), GROUP, consumer, idle, start_id=start, count=count)
        self._cursors[stream] = claimed[0]
        if claimed[0] == b"0-0":  # the whole stream was scanned; repeat in a quarter of the claim time
            self._next_claim[stream] = time.monotonic() + idle / 4000
        entries = [(i, fields) for i, fields in claimed[1] if fields]
        if not entries:
            return []
        pending = await self._redis.xpending_range(_key(stream), GROUP, "-", "+", 10_000, consumername=consumer)
        times: dict[Any, Any] = {row["message_id"]: row["times_delivered"] for row in pending}
        return await self._readable(stream, [(i, fields, times.get(i, 1)) for i, fields in entries])

    async def _readable(self, stream: str, entries: list[tuple[bytes, dict[bytes, bytes], int]]) -> list[Delivery]:
        """Parses items. An item that cannot be read does not stop the others; another worker may be able to read it."""
        readable: list[Delivery] = []
        for entry, fields, deliveries in entries:
            try:
                readable.append(delivery_of(stream, entry, fields, deliveries))
            except WireError as error:
                await self._unreadable(stream, entry.decode(), deliveries, str(error))
        return readable

    async def _unreadable(self, stream: str, entry: str, deliveries: int, error: str) -> None:
        last = self._max_deliveries
        log.error("%s %s cannot be read (delivery %d of %d): %s", stream, entry, deliveries, last, error)
        if deliveries >= last:
            keys, args = [_key(stream), _key(FAILURES)], [GROUP, entry, MAX_FAILURES, stream, error]
            if await cast(Any, self._set_aside(keys=keys, args=args)):
                UNREADABLE.labels(kind_of(stream)).inc()


def _key(stream: str) -> str:
    return "{cepo}:" + stream  # one hash slot, so that the script also runs on a cluster
