"""Watches the Redis of a run for its launcher: a Redis that does not answer for a while does not end the run."""

from __future__ import annotations

import logging
import time
from typing import Any

from cepo.errors import Unreachable
from cepo.net.connections import shown
from cepo.net.settings import Settings
from cepo.net.tls import redis_options

PING_SECONDS = 1.0
"""The interval between pings, and the timeout of each."""
TOLD_SECONDS = 2.0
"""A silence is reported once it has lasted this long; a Redis that restarts is back sooner."""
PATIENCE_SECONDS = 300.0
GRACE_SECONDS = 15.0
"""Processes may end this long after the silence because of it."""
log = logging.getLogger(__name__)


class RedisWatch:
    """Pings Redis, and remembers its silences."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Any = None
        self._next_ping = 0.0
        self._silent_since: float | None = None
        self._told = False
        self._back_at = float("-inf")
        self.refuses = False
        """Whether Redis answered the newest ping with an error: its disk is full."""

    @property
    def was_silent(self) -> bool:
        """Whether Redis did not answer a moment ago."""
        return time.monotonic() - self._back_at < GRACE_SECONDS

    def answers(self) -> bool:
        """Whether Redis answered the newest ping; there is one per second.

        Raises:
            Unreachable: it has not answered for five minutes.
        """
        now = time.monotonic()
        if now >= self._next_ping:
            answered = self._ping()
            self._next_ping = time.monotonic() + PING_SECONDS
            self._noticed(answered, now)
        return self._silent_since is None

    def _noticed(self, answered: bool, now: float) -> None:
        if answered:
            if self._silent_since is not None:
                self._back_at = time.monotonic()
            if self._told:
                log.warning("Redis at %s answers again; the run continues", self._where)
            self._silent_since, self._told = None, False
            return
        self._silent_since = now if self._silent_since is None else self._silent_since
        silence = time.monotonic() - self._silent_since
        if silence > PATIENCE_SECONDS:
            raise Unreachable(
                f"Redis at {self._where} has not answered for {silence:.0f} s; resume the run once it does"
            )
        if silence > TOLD_SECONDS and not self._told:
            self._told = True
            log.warning("Redis at %s does not answer; the run waits up to %.0f s", self._where, PATIENCE_SECONDS)

    @property
    def _where(self) -> str:
        return shown(self._url).partition("://")[2]

    def _ping(self) -> bool:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError, ResponseError
        from redis.retry import Retry

        if self._client is None:
            options: dict[str, Any] = {"socket_timeout": PING_SECONDS, "socket_connect_timeout": PING_SECONDS}
            options |= redis_options(self._url, Settings.from_environment().certificates)
            self._client = Redis.from_url(self._url, retry=Retry(NoBackoff(), 0), **options)
        self.refuses = False
        try:
            self._client.ping()
        except ResponseError:
            self.refuses = True
        except (RedisError, OSError):
            return False
        return True
