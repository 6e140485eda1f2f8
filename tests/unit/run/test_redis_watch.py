"""The launcher notices a Redis that does not answer, and says so once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cepo.errors import Unreachable
from cepo.run import redis_watch
from cepo.run.redis_watch import RedisWatch
from tests.helpers.processes import RedisServer


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

        def waited() -> None:
            while True:
                watch.answers()

        with pytest.raises(
            Unreachable, match=f"Redis at {where} has not answered for . s; resume the run once it does"
        ):
            waited()
