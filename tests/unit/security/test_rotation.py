"""Tokens and certificates are rotated while requests run, and no request fails."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from cepo.errors import UserError
from cepo.net.auth import Tokens, call_metadata
from cepo.net.certificates import Authority
from cepo.net.files import replace_file
from cepo.net.settings import Settings
from cepo.net.tls import CA, CERTIFICATE, KEY, Certificates, client_tls
from cepo.service.bus import RedisBus
from tests.helpers.factories import make_task
from tests.helpers.processes import RedisServer
from tests.helpers.tls_front import TlsFront
from tests.unit.security.conftest import DAY
from tests.unit.security.support import UNAVAILABLE, served, verify

HOSTS = ["localhost", "127.0.0.1"]
OLD, NEW = "the-old-token", "the-new-token"


class Load:
    """Requests that run without a pause over REST and gRPC, and what they returned."""

    def __init__(self, service: Settings, caller: Settings) -> None:
        self._service = service
        self._caller = caller
        self.done = 0
        self.failed: list[str] = []

    async def run(self) -> None:
        """One request after another, each over a new connection."""
        scheme = "https" if self._service.certificates else "http"
        while True:
            tls = client_tls(self._caller) or True
            headers = dict(Tokens.of(self._caller).metadata())
            try:
                async with httpx.AsyncClient(verify=tls, headers=headers) as web:
                    reply = await web.post(f"{scheme}://127.0.0.1:{self._service.http_port}/echo")
                outcome = str(reply.status_code)
            except httpx.HTTPError as error:
                outcome = repr(error)
            said = (await verify(self._service, self._caller)).name
            self.failed += [each for each in (outcome, said) if each not in ("200", "OK")]
            self.done += 1

    async def more(self, count: int = 3) -> None:
        """Waits for further requests, which began after this call."""
        goal = self.done + count + 1
        async with asyncio.timeout(60):
            while self.done < goal:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def loaded(service: Settings, caller: Settings) -> AsyncIterator[Load]:
    load = Load(service, caller)
    running = asyncio.create_task(load.run())
    await load.more()
    try:
        yield load
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    assert load.failed == []


@pytest.fixture
def issue(tmp_path: Path) -> Callable[[Authority, str, bytes], None]:
    """Replaces the certificate of a folder, file by file, as `cp` would."""

    def issue(authority: Authority, name: str, trusted: bytes) -> None:
        now = datetime.datetime.now(datetime.UTC)
        fresh = tmp_path / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        authority.issue(fresh, name, HOSTS, now - DAY, now + DAY)
        (tmp_path / name).mkdir(exist_ok=True)
        replace_file(tmp_path / name / CA, trusted)
        for file in (CERTIFICATE, KEY):
            replace_file(tmp_path / name / file, (fresh / file).read_bytes())

    return issue


def authority(name: str) -> tuple[Authority, bytes]:
    """A new authority, and its certificate as PEM."""
    now = datetime.datetime.now(datetime.UTC)
    made = Authority.new(name, now - 9 * DAY, now + DAY)
    from cryptography.hazmat.primitives.serialization import Encoding

    return made, made.certificate.public_bytes(Encoding.PEM)


async def shown(service: Settings, caller: Settings) -> x509.Certificate:
    """The certificate that a service shows on a new REST connection."""
    _, writer = await asyncio.open_connection("127.0.0.1", service.http_port, ssl=client_tls(caller))
    tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
    certificate = tls.getpeercert(binary_form=True)
    writer.transport.abort()
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate)


async def test_certificates_and_their_authority_are_rotated_under_load(
    tmp_path: Path, issue: Callable[[Authority, str, bytes], None]
) -> None:
    (first, first_pem), (second, second_pem) = authority("first"), authority("second")
    for name in ("service", "client"):
        issue(first, name, first_pem)
    settings = [Settings(certificates=str(tmp_path / name)) for name in ("service", "client")]
    async with served(certificates=settings[0].certificates) as service, loaded(service, settings[1]) as load:
        begun = await shown(service, settings[1])
        for signer, trusted in (
            (first, first_pem + second_pem),
            (second, first_pem + second_pem),
            (second, second_pem),
        ):
            for name in ("service", "client"):
                issue(signer, name, trusted)
                await load.more()
        assert (await shown(service, settings[1])).issuer != begun.issuer
        issue(first, "stranger", second_pem)
        stranger = Settings(certificates=str(tmp_path / "stranger"))
        assert await verify(service, stranger) is UNAVAILABLE
        async with httpx.AsyncClient(verify=client_tls(stranger) or True) as web:
            with pytest.raises(httpx.TransportError):
                await web.get(f"https://127.0.0.1:{service.http_port}/healthz")


async def test_connections_to_redis_take_new_certificates(
    tmp_path: Path, issue: Callable[[Authority, str, bytes], None], redis_server: RedisServer
) -> None:
    (first, first_pem), (second, second_pem) = authority("first"), authority("second")
    for name in ("redis", "client"):
        issue(first, name, first_pem)
    with TlsFront(str(tmp_path / "redis"), redis_server.port) as front:
        url = f"rediss://127.0.0.1:{front.port}/0"
        bus = await RedisBus.connect(Settings(redis_url=url, certificates=str(tmp_path / "client")))
        await bus.publish("in", [make_task()])
        for name in ("redis", "client"):
            issue(second, name, second_pem)
        front.take(str(tmp_path / "redis"))
        await bus._redis.connection_pool.disconnect()
        async with asyncio.timeout(30):
            await bus.publish("in", [make_task()])
            assert await bus.depth("in") == 2
        await bus.close()


async def test_tokens_are_rotated_under_load(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("service", "caller")}
    for file in files.values():
        replace_file(file, OLD)
    caller = Settings(token_file=str(files["caller"]))
    async with served(token_file=str(files["service"])) as service, loaded(service, caller) as load:
        for lines in (f"{OLD}\n{NEW}", f"{NEW}\n{OLD}", NEW):
            for file in files.values():
                replace_file(file, lines)
                await load.more()
        async with httpx.AsyncClient(headers=dict(call_metadata(OLD))) as web:
            assert (await web.post(f"http://127.0.0.1:{service.http_port}/echo")).status_code == 401


def test_files_in_the_middle_of_a_rotation_are_not_used(
    tmp_path: Path, issue: Callable[[Authority, str, bytes], None], caplog: pytest.LogCaptureFixture
) -> None:
    (first, first_pem), (second, second_pem) = authority("first"), authority("second")
    issue(first, "service", first_pem)
    issue(second, "other", second_pem)
    folder, other = tmp_path / "service", tmp_path / "other"
    certificates = Certificates(str(folder))
    before = certificates.current()
    assert certificates.current() is before  # read once
    for name in (CERTIFICATE, KEY):
        replace_file(folder / name, (other / name).read_bytes())
        assert (certificates.current() is before) == (name == CERTIFICATE)
    assert "the previous certificates stay in use" in caplog.text
    after = certificates.current()
    (folder / KEY).unlink()
    assert certificates.current() is after
    with pytest.raises(UserError, match=r"holds no tls\.key"):
        Certificates(str(folder)).current()
