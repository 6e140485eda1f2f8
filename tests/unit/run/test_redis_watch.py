"""The launcher notices a Redis that does not answer, and says so once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from cepo.errors import StorageError, Unreachable
from cepo.run import redis_watch
from cepo.run.child import Child
from cepo.run.folder import RunDir
from cepo.run.local import Stack
from cepo.run.redis_watch import RedisWatch
from tests.helpers.disks import fill, small_disk
from tests.helpers.factories import make_config
from tests.helpers.processes import RedisServer


def forever(call: Callable[[], object]) -> None:
    """Calls until the call raises."""
    while True:
        call()


def test_a_silence_is_told_once_and_its_end_too_and_a_long_one_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_watch, "PING_SECONDS", 0.05)
    monkeypatch.setattr(redis_watch, "TOLD_SECONDS", 0.1)
    monkeypatch.setattr(redis_watch, "PATIENCE_SECONDS", 0.5)
    with RedisServer(tmp_path, "secret") as server, caplog.at_level(logging.WARNING):
        watch = RedisWatch(server.url)
        assert (watch.answers(), watch.was_silent) == (True, False)
        with server.silent():
            watch._next_ping = 0.0
            assert watch.answers() is False
            while not caplog.messages:
                assert watch.answers() is False
        while not watch.answers():
            pass
        assert watch.was_silent
        where = f"127.0.0.1:{server.port}/0"
        assert caplog.messages == [
            f"Redis at {where} does not answer; the run waits up to 0 s",
            f"Redis at {where} answers again; the run continues",
        ]
        server.kill()

        with pytest.raises(
            Unreachable, match=f"Redis at {where} has not answered for . s; resume the run once it does"
        ):
            forever(watch.answers)


def test_a_redis_whose_disk_is_full_answers_and_the_launcher_names_the_disk_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis refuses even pings then; the run would wait for minutes for a Redis that is up."""
    monkeypatch.setattr(redis_watch, "PING_SECONDS", 0.05)
    with small_disk(tmp_path / "disk") as disk, RedisServer(disk) as server:
        stack = Stack(make_config(), RunDir(disk / "run"), redis_url=server.url, services=())
        stack.children["redis"] = Child("redis", [sys.executable, "-c", "import time; time.sleep(600)"], {}, disk / "l")
        (disk / "run" / "logs").mkdir(parents=True)
        stack.children["redis"].start()
        try:
            assert stack.check() is False
            with Redis.from_url(server.url) as client:
                client.config_set("appendfsync", "everysec")
                ballast = fill(disk)
                with pytest.raises(ResponseError, match="MISCONF"):
                    forever(lambda: client.set("key", bytes(2**16)))
                with pytest.raises(StorageError, match=rf"^{disk}/run cannot be written: No space left on device; fr"):
                    forever(stack.check)
                ballast.unlink()
                while stack._watch.refuses:
                    assert stack.check() is False
        finally:
            stack.children["redis"].stop(0.0)
