"""gRPC, REST and Redis connections between processes, and the checks before a service listens."""

from __future__ import annotations

import contextlib
import random
import socket

import grpc
import httpx
from redis.exceptions import AuthenticationError, ResponseError

from cepo.errors import Unreachable, UserError
from cepo.net.auth import Tokens
from cepo.net.limits import is_loopback
from cepo.net.settings import Settings
from cepo.net.tls import certificates_of, client_tls, server_tls

MAX_MESSAGE_BYTES = 64 * 2**20
OWN_PORTS = range(10_000, 32_768)
"""Below the range from which Linux assigns ports to connections, so a free port stays free until it is bound."""
GRPC_OPTIONS = [
    ("grpc.so_reuseport", 0),  # a taken port is an error, not a shared one
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]


def check_exposure(settings: Settings) -> None:
    """Checks that a service may listen on its host: beyond loopback it needs what `settings.exposure` requires.

    Raises:
        UserError: the token or the certificates are missing, or cannot be read.
    """
    server_tls(settings)
    tokens = Tokens.of(settings)
    if tokens.needed and not tokens.current():
        raise UserError(f"CEPO_TOKEN_FILE={settings.token_file} holds no token or cannot be read; write one per line")
    if is_loopback(settings.host) or settings.exposure == "open":
        return
    if not tokens.needed:
        raise UserError(
            f"CEPO_HOST={settings.host} lets other machines call without a token; set CEPO_TOKEN_FILE or CEPO_TOKEN, "
            "or CEPO_EXPOSURE=open to allow it"
        )
    if not settings.certificates and settings.exposure != "cleartext":
        raise UserError(
            f"CEPO_HOST={settings.host} makes other machines send their token unencrypted; set "
            "CEPO_CERTIFICATES (create them with cepo certs), or CEPO_EXPOSURE=cleartext on a private network"
        )


def free_ports(count: int) -> list[int]:
    """Loopback ports that are free now, for processes that bind them later, and again after a restart."""
    ports: set[int] = set()
    draw = random.SystemRandom()  # a seeded generator would draw the same ports in several processes
    while len(ports) < count:
        port = draw.choice(OWN_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.add(port)
    return list(ports)


def channel(address: str, settings: Settings, name: str = "") -> grpc.aio.Channel:
    """A connection to another service, with mutual TLS if this process has certificates.

    Args:
        name: the name in the certificate of the other service; by default that of the address.
    """
    if not settings.certificates:
        return grpc.aio.insecure_channel(address, options=GRPC_OPTIONS)
    now = certificates_of(settings.certificates).current()
    credentials = grpc.ssl_channel_credentials(now.ca, now.key, now.certificate)
    options = [*GRPC_OPTIONS, *([("grpc.ssl_target_name_override", name)] if name else [])]
    return grpc.aio.secure_channel(address, credentials, options=options)


def listen(server: grpc.aio.Server, address: str, settings: Settings) -> None:
    """Adds an address to a gRPC server, with mutual TLS if this process has certificates. They may be rotated."""
    if not settings.certificates:
        server.add_insecure_port(address)
        return
    certificates = certificates_of(settings.certificates)

    def current() -> grpc.ServerCertificateConfiguration:
        now = certificates.current()
        ca = now.ca if settings.mutual_tls else None
        return grpc.ssl_server_certificate_configuration([(now.key, now.certificate)], ca)

    credentials = grpc.dynamic_ssl_server_credentials(current(), current, settings.mutual_tls)
    server.add_secure_port(address, credentials)


def web_client(settings: Settings, address: str = "", timeout: float = 5.0) -> httpx.Client:
    """A REST client with this process's certificate, and its current token in each request."""
    tokens = Tokens.of(settings)

    def authorize(request: httpx.Request) -> httpx.Request:
        request.headers.update(dict(tokens.metadata()))
        return request

    return httpx.Client(base_url=address, auth=authorize, verify=client_tls(settings) or True, timeout=timeout)


def no_redis(url: str, error: Exception, otherwise: str) -> UserError | Unreachable:
    """The error for a Redis that rejects the connection (UserError) or does not answer (Unreachable)."""
    where = f"Redis at {shown(url).partition('://')[2]}"
    if isinstance(error, AuthenticationError | ResponseError):
        fix = "fix the password or the database number in the address"
        return UserError(f"{where} rejected the connection ({error}); {fix}, or {otherwise}")
    return Unreachable(f"{where} does not answer ({error}); start it, or {otherwise}")


def shown(url: str) -> str:
    """A URL without user name and password, for logs and messages."""
    before, _, place = url.partition("?")[0].rpartition("@")
    return f"{before.partition('://')[0]}://{place}" if before else place
