"""The whole system with tokens and mutual TLS, also to Redis: it trains, rejects strangers and keeps its secrets."""

from __future__ import annotations

import datetime
import json
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ConnectionError as RedisConnectionError
from redis.retry import Retry

from cepo.cli import main
from cepo.net.certificates import Authority
from cepo.run.deployment import SPECS
from tests.helpers.processes import RedisServer
from tests.helpers.tls_front import TlsFront
from tests.pipeline.support import SLOW_SECONDS, command, rows, started, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOKEN, PASSWORD = "token-9f3a51c7", "password-b2e8d604"
METHODS = {
    "rollout": "/cepo.v1.RolloutService/Generate",
    "verifier": "/cepo.v1.VerifierService/Verify",
    "teacher": "/cepo.v1.TeacherService/Score",
    "trainer": "/cepo.v1.TrainerService/Status",
}
STEPS = 3
SETTINGS = (f"loop.steps={STEPS}", "sampling.prompts=4", "eval.prompts=4", "eval.every=3", "engine.max_num_seqs=32")


def refusal(address: str, headers: dict[str, str], tls: ssl.SSLContext) -> int | None:
    """The HTTP status of a REST call; None if the connection failed."""
    try:
        return httpx.get(f"{address}/metrics", headers=headers, verify=tls, timeout=SLOW_SECONDS).status_code
    except httpx.TransportError:
        return None


def grpc_answer(address: str, method: str, tls: grpc.ChannelCredentials, token: str) -> grpc.StatusCode:
    """The status of a call with an empty message: a caller that is accepted gets an error about the message."""
    with grpc.secure_channel(address, tls) as channel:
        call = channel.unary_unary(method).with_call
        try:
            call(b"", metadata=[("authorization", f"Bearer {token}")], timeout=SLOW_SECONDS)
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
    run_dir = tmp_path / "run"
    with RedisServer(tmp_path, PASSWORD) as redis, TlsFront(str(certificates / "redis"), redis.port) as front:
        url = f"rediss://:{PASSWORD}@127.0.0.1:{front.port}/0"
        with started(command(run_dir, "--redis", url, settings=SETTINGS), secure) as process:
            wait_until(lambda: listening(run_dir), process)
            with redis.silent():  # the run cannot finish meanwhile
                for name, value in secure.items():
                    monkeypatch.setenv(name, value)
                capsys.readouterr()
                assert main(["status", str(run_dir)]) == 0
                status = capsys.readouterr().out
                check_refusals(json.loads((run_dir / "services.json").read_text()), certificates, strangers)
            check_redis(front.port, certificates, strangers)
            printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert [row["groups/failed"] for row in rows(run_dir)] == [0.0] * STEPS
    assert json.loads(status)["steps"] == STEPS
    written = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"services.json", "config.toml", *(f"{name}.log" for name in SPECS)}
    for secret in (TOKEN, PASSWORD):
        assert secret not in printed + status
        assert not [path for path in written if secret.encode() in path.read_bytes()]


def listening(run_dir: Path) -> bool:
    """Whether every service listens. The rollout is the last to do so, before the first step of the run."""
    file = run_dir / "services.json"
    if not file.exists():
        return False
    try:
        for address in json.loads(file.read_text())["http"].values():
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=1).close()
    except OSError:
        return False
    return True


def check_refusals(addresses: dict[str, dict[str, str]], certificates: Path, strangers: Path) -> None:
    """Every service rejects callers without a certificate, with a foreign or expired one, or with a wrong token."""
    expire(certificates)
    ca, ours = certificates / "client" / "ca.crt", certificates / "client"
    assert set(addresses["http"]) == set(addresses["grpc"]) == set(SPECS)

    def check(name: str) -> None:
        address, target, method = addresses["http"][name], addresses["grpc"][name], METHODS[name]
        for folder in (None, strangers / "client", certificates / "expired", ours):
            rest, rpc = ssl.create_default_context(cafile=ca), grpc.ssl_channel_credentials(ca.read_bytes())
            if folder:
                chain = folder / "tls.crt", folder / "tls.key"
                rest.load_cert_chain(*chain)
                rpc = grpc.ssl_channel_credentials(ca.read_bytes(), chain[1].read_bytes(), chain[0].read_bytes())
            asked = refusal(address, {"Authorization": f"Bearer {TOKEN}"}, rest)
            called = grpc_answer(target, method, rpc, TOKEN)
            if folder != ours:
                assert (asked, called) == (None, grpc.StatusCode.UNAVAILABLE), (name, folder)
        assert asked == 200
        assert called not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)
        assert refusal(address, {}, rest) == refusal(address, {"Authorization": "Bearer wrong"}, rest) == 401
        assert grpc_answer(target, method, rpc, "wrong") is grpc.StatusCode.UNAUTHENTICATED

    with ThreadPoolExecutor() as pool:
        list(pool.map(check, SPECS))


def expire(certificates: Path) -> None:
    """Signs a certificate that expired yesterday with the authority of `cepo certs`."""
    key = serialization.load_pem_private_key((certificates / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    authority = Authority(x509.load_pem_x509_certificate((certificates / "client" / "ca.crt").read_bytes()), key)
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    authority.issue(certificates / "expired", "expired", ["127.0.0.1"], now - 2 * day, now - day)


def check_redis(port: int, certificates: Path, strangers: Path) -> None:
    """Redis rejects the same callers, and a wrong password."""

    def ping(folder: Path | None, password: str) -> bool:
        chain = {"ssl_certfile": str(folder / "tls.crt"), "ssl_keyfile": str(folder / "tls.key")} if folder else {}
        ca = str(certificates / "client" / "ca.crt")
        once = Retry(NoBackoff(), 0)
        with Redis("127.0.0.1", port, password=password, ssl=True, ssl_ca_certs=ca, retry=once, **chain) as redis:
            return bool(redis.ping())

    assert ping(certificates / "client", PASSWORD)
    with pytest.raises(AuthenticationError):
        ping(certificates / "client", "wrong")
    for folder in (None, strangers / "client", certificates / "expired"):
        with pytest.raises(RedisConnectionError):
            ping(folder, PASSWORD)
