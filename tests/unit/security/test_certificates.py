"""Which clients REST and gRPC accept over TLS, and the output of `cepo certs`."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from cepo.cli import main
from cepo.cli.certs import NAMES
from cepo.client import AsyncClient
from cepo.credit import CreditRequest
from cepo.errors import Unreachable, UserError
from cepo.healthcheck import ready
from cepo.net.auth import call_metadata
from cepo.net.connections import channel
from cepo.net.settings import Settings
from cepo.net.tls import client_tls, redis_options
from cepo.run.deployment import SPECS
from cepo.service.adapters import fetch_adapter
from cepo.service.bus import RedisBus
from services.teacher.grading import remote_verifier
from tests.helpers.factories import POLICY, make_group, make_task
from tests.helpers.processes import RedisServer
from tests.helpers.tls_front import TlsFront
from tests.unit.security.conftest import Certificates
from tests.unit.security.support import UNAUTHENTICATED, UNAVAILABLE, served, verify

TOKEN = "a-token-of-the-tests"
CREDIT = CreditRequest.model_validate(
    {"messages": [{"role": "user", "content": "1 + 1 = ?"}], "responses": [{"text": "2"}], "positive": "2"}
)


def caller(certificates: Path | str, token: str = TOKEN) -> Settings:
    return Settings(certificates=str(certificates), token=token)


async def post(service: Settings, caller: Settings) -> int | str:
    """The status of a REST call, or the reason why there was no connection."""
    tls = client_tls(caller) or False  # without certificates: accepts any server
    async with httpx.AsyncClient(verify=tls, headers=dict(call_metadata(caller.token))) as web:
        try:
            return (await web.post(f"https://127.0.0.1:{service.http_port}/echo", content=b"123")).status_code
        except httpx.TransportError as error:
            return type(error).__name__


async def test_a_certificate_and_a_token_are_let_in(certificates: Certificates) -> None:
    async with served(certificates=str(certificates.service), token=TOKEN) as service:
        assert (await verify(service, caller(certificates.client))).name == "OK"
        assert await post(service, caller(certificates.client)) == 200


@pytest.mark.parametrize("name", ["", "stranger", "expired"])
async def test_no_certificate_a_strangers_and_an_expired_one_are_refused(certificates: Certificates, name: str) -> None:
    folder = getattr(certificates, name) if name else ""
    async with served(certificates=str(certificates.service), token=TOKEN) as service:
        assert await verify(service, caller(folder)) is UNAVAILABLE
        assert await post(service, caller(folder)) in ("ReadError", "ConnectError", "RemoteProtocolError")


async def test_a_certificate_without_the_token_is_not_enough(certificates: Certificates) -> None:
    async with served(certificates=str(certificates.service), token=TOKEN) as service:
        for token in ("", "wrong", TOKEN.upper()):
            assert await verify(service, caller(certificates.client, token)) is UNAUTHENTICATED
            assert await post(service, caller(certificates.client, token)) == 401


@pytest.mark.parametrize("name", ["stranger", "expired", "elsewhere"])
async def test_a_service_that_is_another_is_not_told_the_token(certificates: Certificates, name: str) -> None:
    async with served(certificates=str(getattr(certificates, name)), token=TOKEN, mutual_tls=False) as service:
        assert await verify(service, caller(certificates.client)) is UNAVAILABLE
        assert await post(service, caller(certificates.client)) == "ConnectError"


async def test_tls_alone_asks_no_certificate_of_callers(certificates: Certificates) -> None:
    async with served(certificates=str(certificates.service), token=TOKEN, mutual_tls=False) as service:
        assert await post(service, caller("")) == 200
        assert await post(service, caller("", "wrong")) == 401
        assert (await verify(service, caller(certificates.client))).name == "OK"


async def test_services_call_each_other_with_their_certificates(certificates: Certificates) -> None:
    async with served(certificates=str(certificates.service), token=TOKEN) as service:
        address = f"127.0.0.1:{service.grpc_port}"
        known = caller(certificates.client).model_copy(update={"verifier_address": address})
        group = make_group()
        assert len((await remote_verifier(known)(group)).verdicts) == len(group.completions)
        with pytest.raises(Unreachable, match="UNAVAILABLE"):
            await remote_verifier(known.model_copy(update={"certificates": str(certificates.stranger)}))(group)
        web = f"https://127.0.0.1:{service.http_port}"
        async with AsyncClient(web, TOKEN, tls=client_tls(known)) as client:
            with pytest.raises(UserError, match="Not Found"):  # accepted, but there is no such route
                await client.credit(CREDIT)
        async with AsyncClient(web, TOKEN) as client:
            with pytest.raises(Unreachable, match="does not answer"):
                await client.credit(CREDIT)
        with pytest.raises(Unreachable, match="UNIMPLEMENTED"):  # accepted, but there are no adapters
            await fetch_adapter(known.model_copy(update={"trainer_address": address}), POLICY)


async def test_the_health_check_of_a_container_has_its_certificate(certificates: Certificates) -> None:
    async with served(certificates=str(certificates.elsewhere), token=TOKEN) as service:
        assert await asyncio.to_thread(ready, service) is True
        assert await asyncio.to_thread(ready, service.model_copy(update={"certificates": ""})) is False


@pytest.mark.parametrize("missing", ["ca.crt", "tls.crt", "tls.key"])
def test_a_file_that_is_missing_or_damaged_is_named(certificates: Certificates, tmp_path: Path, missing: str) -> None:
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (tmp_path / name).write_bytes((certificates.client / name).read_bytes())
    (tmp_path / missing).write_text("no certificate")
    with pytest.raises(UserError, match=r"^CEPO_CERTIFICATES="):
        channel("127.0.0.1:1", caller(tmp_path))
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=f"holds no {missing}"):
        channel("127.0.0.1:1", caller(tmp_path))


def test_certs_makes_a_folder_for_each_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "certificates"
    assert main(["certs", str(out), "--host", "gpu-1", "--host", "10.1.2.3", "--host", "fd00::7", "--days", "7"]) == 0
    assert f"CEPO_CERTIFICATES={out}" in capsys.readouterr().out
    assert set(NAMES) == {*SPECS, "redis", "client"} == {path.name for path in out.iterdir() if path.is_dir()}
    assert not [key for key in out.rglob("*.key") if stat.S_IMODE(key.stat().st_mode) != 0o600]
    for name in NAMES:
        assert client_tls(Settings(certificates=str(out / name))) is not None
        leaf = x509.load_pem_x509_certificate((out / name / "tls.crt").read_bytes())
        hosts = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        named = {str(host.value) for host in hosts}
        assert {name, f"{name}.cepo.svc", "localhost", "127.0.0.1", "gpu-1", "10.1.2.3", "fd00::7"} <= named
        assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days == 7
    assert main(["certs", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    for wrong in (
        *(["--days", days] for days in ("0", "99999999")),
        *(["--host", host] for host in ("https://gpu-1:8051", "two names", "::7::")),
    ):
        assert main(["certs", str(tmp_path / "more"), *wrong]) == 2
        assert wrong[1] in capsys.readouterr().err


def test_each_service_takes_its_own_folder(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    root = certificates.service.parent
    monkeypatch.setenv("CEPO_CERTIFICATES", str(root))
    assert Settings.from_environment().certificates == str(root / "client")
    assert Settings.from_environment("service").certificates == str(root / "service")
    assert Settings.from_environment("rollout").certificates == str(root)


async def test_redis_is_reached_with_a_certificate_alone(certificates: Certificates, redis_server: RedisServer) -> None:
    with TlsFront(str(certificates.service), redis_server.port) as front:
        url = f"rediss://127.0.0.1:{front.port}/0"
        bus = await RedisBus.connect(Settings(redis_url=url, certificates=str(certificates.client)))
        await bus.publish("in", [make_task()])
        assert await bus.depth("in") == 1
        await bus.close()
        for folder in ("", str(certificates.stranger), str(certificates.expired)):
            with pytest.raises(Unreachable, match=f"Redis at 127.0.0.1:{front.port}/0 does not answer"):
                await RedisBus.connect(Settings(redis_url=url, certificates=folder), patience=0)
    with TlsFront(str(certificates.elsewhere), redis_server.port) as front:
        url = f"rediss://127.0.0.1:{front.port}/0"
        with pytest.raises(Unreachable, match="does not answer"):
            await RedisBus.connect(Settings(redis_url=url, certificates=str(certificates.client)), patience=0)


def test_only_a_redis_with_tls_is_given_certificates(certificates: Certificates) -> None:
    folder = str(certificates.client)
    assert redis_options("redis://h:1/0", folder) == redis_options("rediss://h:1/0", "") == {}
    assert redis_options("rediss://h:1/0", folder)["ssl_keyfile"] == f"{folder}/tls.key"
