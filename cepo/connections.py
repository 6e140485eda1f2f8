"""How processes reach each other: message bounds and certificates of gRPC, REST and Redis, and where one may listen.

A folder of certificates has the names of a kubernetes.io/tls secret: ca.crt says whom to trust, tls.crt and tls.key who
one is, as a server and as a client. They are read when a process starts.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx

from cepo.auth import Tokens
from cepo.errors import UserError
from cepo.settings import Settings

CA, CERTIFICATE, KEY = "ca.crt", "tls.crt", "tls.key"
MAX_MESSAGE_BYTES = 64 * 2**20
GRPC_OPTIONS = [
    ("grpc.so_reuseport", 0),  # a taken port is an error, not a shared one
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]


def check_exposure(settings: Settings) -> None:
    """Refuses to listen beyond loopback without what `exposure` asks for, or anywhere with a token file that is empty.

    Raises:
        UserError: no token, or no certificates with which it would not travel in clear.
    """
    tokens = Tokens.of(settings)
    if tokens.needed and not tokens.current():
        raise UserError(f"CEPO_TOKEN_FILE={settings.token_file} holds no token, or cannot be read; write one a line")
    if _is_loopback(settings.host) or settings.exposure == "open":
        return
    if not tokens.needed:
        raise UserError(
            f"CEPO_HOST={settings.host} lets other machines call without a token; set CEPO_TOKEN_FILE or CEPO_TOKEN, "
            "or CEPO_EXPOSURE=open to let anybody"
        )
    if not settings.certificates and settings.exposure != "cleartext":
        raise UserError(
            f"CEPO_HOST={settings.host} would have other machines send their token in clear; set CEPO_CERTIFICATES "
            "(cepo certs makes them), or CEPO_EXPOSURE=cleartext on a private network"
        )


def channel(address: str, settings: Settings) -> grpc.aio.Channel:
    """A connection to another service, with this process's certificate where there are any."""
    if not settings.certificates:
        return grpc.aio.insecure_channel(address, options=GRPC_OPTIONS)
    client_tls(settings)  # says what is wrong with a file, which gRPC does not
    ca, certificate, key = (path.read_bytes() for path in _files(settings.certificates))
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca, key, certificate), options=GRPC_OPTIONS)


def listen(server: grpc.aio.Server, address: str, settings: Settings) -> None:
    """Has a gRPC server listen; with certificates, to callers that show one."""
    if not settings.certificates:
        server.add_insecure_port(address)
        return
    uvicorn_options(settings)  # says what is wrong with a file, which gRPC does not
    ca, certificate, key = (path.read_bytes() for path in _files(settings.certificates))
    credentials = grpc.ssl_server_credentials(
        [(key, certificate)], ca if settings.mutual_tls else None, require_client_auth=settings.mutual_tls
    )
    server.add_secure_port(address, credentials)


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """What a REST server is given; nothing without certificates.

    Raises:
        UserError: a certificate or key cannot be read.
    """
    if not settings.certificates:
        return {}
    _context(ssl.PROTOCOL_TLS_SERVER, settings)
    ca, certificate, key = map(str, _files(settings.certificates))
    required = ssl.CERT_REQUIRED if settings.mutual_tls else ssl.CERT_NONE
    return {"ssl_ca_certs": ca, "ssl_certfile": certificate, "ssl_keyfile": key, "ssl_cert_reqs": required}


def client_tls(settings: Settings) -> ssl.SSLContext | None:
    """What a REST client is given: it checks the server's name; None without certificates."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, settings) if settings.certificates else None


def web_client(settings: Settings, address: str = "", timeout: float = 5.0) -> httpx.Client:
    """A REST client with this process's token, as it is at each request, and its certificate."""
    tokens = Tokens.of(settings)

    def authorize(request: httpx.Request) -> httpx.Request:
        request.headers.update(dict(tokens.metadata()))
        return request

    return httpx.Client(base_url=address, auth=authorize, verify=client_tls(settings) or True, timeout=timeout)


def redis_options(url: str, certificates: str) -> dict[str, Any]:
    """What a Redis client is given beside a `rediss://` address."""
    if not (url.startswith("rediss://") and certificates):
        return {}
    ca, certificate, key = map(str, _files(certificates))
    return {"ssl_ca_certs": ca, "ssl_certfile": certificate, "ssl_keyfile": key, "ssl_check_hostname": True}


def shown(url: str) -> str:
    """An address without the password that may be in it, to be logged and written."""
    before, _, place = url.partition("?")[0].rpartition("@")
    return f"{before.partition('://')[0]}://{place}" if before else place


def _context(protocol: int, settings: Settings) -> ssl.SSLContext:
    ca, certificate, key = _files(settings.certificates)
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(ca)
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise UserError(f"CEPO_CERTIFICATES={settings.certificates}: {CA}, {CERTIFICATE} or {KEY}: {error}") from error
    return context


def _files(certificates: str) -> Iterator[Path]:
    for name in (CA, CERTIFICATE, KEY):
        path = Path(certificates) / name
        if not path.is_file():
            raise UserError(f"CEPO_CERTIFICATES={certificates} holds no {name}; cepo certs OUT makes all three")
        yield path


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
