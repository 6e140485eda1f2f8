"""Waiting for a Redis that starts, restarts, stalls, or cannot write: it has no memory or disk, or is no primary."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from redis.asyncio import Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError as RedisConnectionError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError as RedisTimeoutError,
)

from cepo.errors import Unreachable, UserError
from cepo.net.connections import no_redis
from cepo.net.tls import RenewedContext, certificates_of

T = TypeVar("T")
RETRY_SECONDS = 60.0
"""How long a call waits for a Redis that does not answer or refuses writes."""
PROBE_SECONDS = 3.0
_REFUSES = re.compile(r"\b(OOM|MISCONF|READONLY|NOREPLICAS|MASTERDOWN|UNBLOCKED)\b")
"""Errors of a Redis that cannot write now, also inside the message of a script's error."""
_REFUSALS = (OutOfMemoryError, ReadOnlyError, MasterDownError)
"""Errors from whose message the client removes the code."""
_RESTARTS = (RedisConnectionError, RedisTimeoutError, NoScriptError)
"""Errors of a Redis that restarted where the client does not repeat the call: while it takes a connection
from its pool, or between the loading of a script and its call."""
log = logging.getLogger(__name__)


class RenewedConnection(SSLConnection):
    """A connection to Redis whose every handshake takes the current certificates."""

    def __init__(self, *, ssl_certfile: str, **options: Any) -> None:
        super().__init__(ssl_certfile=ssl_certfile, **options)
        certificates = certificates_of(str(Path(ssl_certfile).parent))
        self.ssl_context.context = RenewedContext.of(certificates, "client")


async def answering(url: str, options: Mapping[str, Any], patience: float) -> None:
    """Returns once Redis answers.

    Args:
        options: TLS options of the client.
        patience: seconds to wait while nothing listens; a Redis that is stalled or loads its data is given a minute.

    Raises:
        UserError: Redis rejects the connection.
        Unreachable: Redis does not answer.
    """
    begun, timeouts = time.monotonic(), {"socket_connect_timeout": PROBE_SECONDS, "socket_timeout": PROBE_SECONDS}
    async with Redis.from_url(url, retry=Retry(NoBackoff(), 0), **timeouts, **options) as probe:
        while True:
            try:
                await cast(Any, probe.ping())
                return
            except (RedisError, OSError) as error:
                problem = no_redis(url, error, "set CEPO_REDIS_URL")
                stalled = isinstance(error, RedisTimeoutError | BusyLoadingError)
                limit = max(patience, RETRY_SECONDS) if stalled else patience
                if isinstance(problem, UserError) or time.monotonic() - begun >= limit:
                    raise problem from error
            await asyncio.sleep(0.2)


async def answered(call: Callable[[], Awaitable[T]], redis: Redis, address: str, seconds: float) -> T:
    """The result of a call, which is repeated while Redis restarts or refuses writes.

    Raises:
        RedisError: Redis still does not answer after `seconds`.
        Unreachable: Redis still refuses after `seconds`.
    """
    begun, wait = time.monotonic(), 0.05
    while True:
        try:
            return await call()
        except _RESTARTS:
            if time.monotonic() - begun >= seconds:
                raise
        except ResponseError as error:
            if not (isinstance(error, _REFUSALS) or _REFUSES.search(str(error))):
                raise
            if time.monotonic() - begun >= seconds:
                problem = f"Redis at {address} refuses writes: {error}; give it memory or disk space"
                raise Unreachable(problem) from error
            if wait == 0.05:
                log.warning("Redis at %s refuses writes (%s); trying for %.0f seconds", address, error, seconds)
            await redis.connection_pool.disconnect(inuse_connections=False)  # its name may lead to another server now
        await asyncio.sleep(wait)
        wait = min(1.0, 2 * wait)
