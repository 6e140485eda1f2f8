"""The whole system with tokens and mutual TLS, Redis included: it trains, lets nobody else in and keeps its secrets."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cepo.cli import main
from cepo.deployment import SPECS
from cepo.settings import child_environment
from tests.conftest import RedisServer, unused_port
from tests.pipeline.support import ROOT, command, rows, wait_until
from tests.tls_front import TlsFront

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TOKEN, PASSWORD = "token-9f3a51c7", "password-b2e8d604"
STEPS = 2
SETTINGS = (f"loop.steps={STEPS}", "sampling.prompts=4", "eval.prompts=4", "eval.every=2", "engine.max_num_seqs=32")


def refusal(address: str, headers: dict[str, str], tls: ssl.SSLContext) -> int | None:
    """The status of a REST call; None if there was no connection."""
    try:
        return httpx.get(f"{address}/metrics", headers=headers, verify=tls, timeout=10).status_code
    except httpx.TransportError:
        return None


def grpc_health(address: str, credentials: grpc.ChannelCredentials) -> grpc.StatusCode:
    with grpc.secure_channel(address, credentials) as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def test_a_run_over_mutual_tls_with_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    certificates, strangers = tmp_path / "certificates", tmp_path / "strangers"
    assert main(["certs", str(certificates)]) == main(["certs", str(strangers)]) == 0
    (tmp_path / "tokens").write_text(TOKEN)
    secure = {"CEPO_CERTIFICATES": str(certificates), "CEPO_TOKEN_FILE": str(tmp_path / "tokens")}
    redis = RedisServer(tmp_path, unused_port(), PASSWORD)
    redis.start()
    run_dir = tmp_path / "run"
    with TlsFront(str(certificates / "redis"), redis.port) as front:
        url = f"rediss://:{PASSWORD}@127.0.0.1:{front.port}/0"
        process = subprocess.Popen(
            command(run_dir, "--redis", url, settings=SETTINGS),
            cwd=ROOT,
            env=child_environment(secure),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            wait_until(lambda: listening(run_dir), process, 120)
            check_refusals(json.loads((run_dir / "services.json").read_text()), certificates, strangers)
            for name, value in secure.items():
                monkeypatch.setenv(name, value)
            capsys.readouterr()
            assert main(["status", str(run_dir)]) == 0
            status = capsys.readouterr().out
            printed, _ = process.communicate(timeout=120)
        finally:
            process.kill()
            redis.kill()
    assert process.returncode == 0, printed
    assert [row["groups/failed"] for row in rows(run_dir)] == [0.0] * STEPS
    assert json.loads(status)["steps"] == STEPS
    written = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"services.json", "config.toml", *(f"{name}.log" for name in SPECS)}
    for secret in (TOKEN, PASSWORD):
        assert secret not in printed + status
        assert not [path for path in written if secret.encode() in path.read_bytes()]


def listening(run_dir: Path) -> bool:
    """Whether every service has its ports open; the rollout is the last, and its first step lies ahead."""
    file = run_dir / "services.json"
    if not file.exists():
        return False
    try:
        for address in json.loads(file.read_text())["http"].values():
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=1).close()
    except OSError:
        return False
    return True


def check_refusals(found: dict[str, dict[str, str]], certificates: Path, strangers: Path) -> None:
    """Every service refuses whoever lacks a certificate, has another authority's, or a wrong token."""
    ca = certificates / "client" / "ca.crt"
    nobody = ssl.create_default_context(cafile=ca)
    stranger, ours = ssl.create_default_context(cafile=ca), ssl.create_default_context(cafile=ca)
    stranger.load_cert_chain(strangers / "client" / "tls.crt", strangers / "client" / "tls.key")
    ours.load_cert_chain(certificates / "client" / "tls.crt", certificates / "client" / "tls.key")
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert set(found["http"]) == set(found["grpc"]) == set(SPECS)
    for address in found["http"].values():
        assert refusal(address, bearer, nobody) is None
        assert refusal(address, bearer, stranger) is None
        assert refusal(address, {}, ours) == refusal(address, {"Authorization": "Bearer wrong"}, ours) == 401
        assert refusal(address, bearer, ours) == 200
    key, certificate = ((certificates / "client" / name).read_bytes() for name in ("tls.key", "tls.crt"))
    for address in found["grpc"].values():
        root = ca.read_bytes()
        assert grpc_health(address, grpc.ssl_channel_credentials(root)) is grpc.StatusCode.UNAVAILABLE
        assert grpc_health(address, grpc.ssl_channel_credentials(root, key, certificate)) is grpc.StatusCode.OK
