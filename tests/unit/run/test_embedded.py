"""The embedded Redis: who may use it, and where its files may lie."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis
from redis.backoff import ConstantBackoff, NoBackoff
from redis.exceptions import AuthenticationError, ResponseError
from redis.retry import Retry

from cepo.run import embedded
from cepo.run.folder import RunDir
from cepo.run.local import Stack
from tests.helpers.factories import make_config
from tests.helpers.processes import unused_port


def test_the_embedded_redis_has_a_password_that_no_other_user_can_read(tmp_path: Path) -> None:
    stacks = [Stack(make_config(), RunDir(tmp_path / name)) for name in ("a run of Zoë", "another")]
    first, second = [stack.redis_url.partition(":")[2] for stack in stacks]
    assert first != second
    stack, password = stacks[0], urlsplit(stacks[0].redis_url).password
    assert password
    child = stack.children["redis"]
    assert password not in " ".join(child.command)
    config = stack.run.path / "redis" / embedded.CONFIG
    assert (stat.S_IMODE(config.stat().st_mode), config.read_text()) == (0o600, f"requirepass {password}\n")
    assert child.environment == {}
    assert stack.children["verifier"].environment["CEPO_REDIS_URL"] == stack.redis_url


def test_the_embedded_redis_serves_a_folder_of_any_name_and_refuses_strangers(tmp_path: Path) -> None:
    port = unused_port()
    server = subprocess.Popen(embedded.command(tmp_path / "a 'run' of Zoë", port, "secret"), stdout=subprocess.DEVNULL)
    once = Retry(NoBackoff(), 0)
    try:
        with Redis(port=port, password="secret", retry=Retry(ConstantBackoff(0.05), 1000)) as client:
            assert client.ping()
            assert client.info("server")["valkey_version"]
        for wrong in (None, "guess"):
            with (
                Redis(port=port, password=wrong, retry=once) as stranger,
                pytest.raises((ResponseError, AuthenticationError)),
            ):
                stranger.ping()
    finally:
        server.kill()
        server.wait()
