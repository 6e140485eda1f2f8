"""Secrets that a verifier is given are in nothing that it writes or answers, whatever is done to it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from cepo.cli import main
from cepo.errors import UserError
from cepo.net.connections import shown
from cepo.net.environment import child_environment
from cepo.net.settings import Settings
from cepo.run.folder import RunDir
from cepo.run.local import Stack
from cepo.service.bus import RedisBus
from tests.helpers.factories import make_config
from tests.helpers.processes import RedisServer, unused_port

ROOT = Path(__file__).parents[3]
TOKEN, PASSWORD = "token-51c79f3a", "password-d604b2e8"


def start(settings: Settings) -> subprocess.Popen[str]:
    command, variables = [sys.executable, "-m", "services.verifier"], child_environment(settings.to_environment())
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def answers(web: httpx.Client) -> str:
    """Everything a caller may be told, with and without the token."""
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    replies = []
    for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}, bearer):
        for path in ("/", "/docs", "/openapi.json", "/metrics", "/readyz", "/v1/verify", "/nothing"):
            replies.append(web.get(path, headers=headers))
        for body in (b"{", b"[" * 100_000, b'{"response": "1"}', b'{"response": "\\\\boxed{1}", "answer": "1"}'):
            replies.append(web.post("/v1/verify", content=body, headers=headers))
    return "\n".join(f"{reply.status_code} {reply.headers} {reply.text}" for reply in replies)


def test_logs_replies_and_openapi_of_a_service_hold_no_secret(tmp_path: Path) -> None:
    with RedisServer(tmp_path, PASSWORD) as redis:
        settings = Settings(
            redis_url=redis.url,
            token=TOKEN,
            threads=1,
            log_level="DEBUG",
            grpc_port=unused_port(),
            http_port=unused_port(),
        )
        process = start(settings)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{settings.http_port}", timeout=60) as web:
                while not ready(web):
                    assert process.poll() is None
                    time.sleep(0.05)
                told = answers(web)
                redis.kill()  # what it says when Redis goes is looked at too
                time.sleep(0.5)
        finally:
            process.kill()
            written, _ = process.communicate(timeout=60)
    assert "401" in told
    assert "bearer" in told
    assert '"level"' in written
    for secret in (TOKEN, PASSWORD):
        assert secret not in told
        assert secret not in written


def ready(web: httpx.Client) -> bool:
    try:
        return web.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def test_a_wrong_password_and_a_malformed_address_are_not_repeated(tmp_path: Path, redis_server: RedisServer) -> None:
    with RedisServer(tmp_path, "another") as redis:
        for url in (f"redis://:{PASSWORD}@127.0.0.1:{redis.port}/0", f"redis://:{PASSWORD}/x@127.0.0.1:1/0"):
            with start(Settings(redis_url=url, token=TOKEN)) as ended:
                written = ended.stdout.read() if ended.stdout else ""
            assert ended.returncode == 2
            (line,) = written.splitlines()
            assert "CEPO_REDIS_URL" in line
            assert PASSWORD not in line


def test_settings_and_the_run_folder_hold_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(token=TOKEN, redis_url=f"redis://:{PASSWORD}@h:1/0")
    assert TOKEN not in repr(settings)
    assert PASSWORD not in str(settings)
    stack = Stack(make_config(), RunDir(tmp_path), settings.redis_url, services=())
    stack.start()
    assert PASSWORD not in (tmp_path / "services.json").read_text()
    with pytest.raises(UserError) as caught:
        RedisBus(f"redis://:{PASSWORD}")
    assert PASSWORD not in str(caught.value)
    file = str(ROOT / "deploy" / "runs" / "tiny_cepo.toml")
    assert main(["check", file, "--redis", f"redis://:{PASSWORD}@127.0.0.1:x/0"]) == 2
    assert PASSWORD not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("rediss://user:p@ss@h:1/0", "rediss://h:1/0"),
        ("redis://h:1/0?password=p", "redis://h:1/0"),
        ("unix://:p@/run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, expected: str) -> None:
    assert shown(url) == expected
