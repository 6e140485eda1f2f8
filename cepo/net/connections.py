"""How processes reach each other: connections, the bound on their messages, and where one may listen."""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket

import grpc
import httpx
from redis.exceptions import AuthenticationError, ResponseError

from cepo.errors import Unreachable, UserError
from cepo.net.auth import Tokens
from cepo.net.settings import Settings
from cepo.net.tls import client_tls, files, uvicorn_options

MAX_MESSAGE_BYTES = 64 * 2**20
OWN_PORTS = range(10_000, 32_768)
"""Linux gives the ends of connections ports above these: what is free here stays free until somebody binds it."""
GRPC_OPTIONS = [
    ("grpc.so_reuseport", 0),  # a taken port is an error, not a shared one
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]


def check_exposure(settings: Settings) -> None:
    """Refuses to listen beyond loopback without what `exposure` asks for, or anywhere with tokens or certificates that
    cannot be read.

    Raises:
        UserError: no token, or no certificates with which it would not travel in clear.
    """
    uvicorn_options(settings)
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


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on, for processes that bind them later, and again after a restart."""
    found: set[int] = set()
    draw = random.SystemRandom()  # other processes draw too, some of them from the same seed
    while len(found) < count:
        port = draw.choice(OWN_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.add(port)
    return list(found)


def channel(address: str, settings: Settings) -> grpc.aio.Channel:
    """A connection to another service, with this process's certificate where there are any."""
    if not settings.certificates:
        return grpc.aio.insecure_channel(address, options=GRPC_OPTIONS)
    client_tls(settings)  # says what is wrong with a file, which gRPC does not
    ca, certificate, key = (path.read_bytes() for path in files(settings.certificates))
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca, key, certificate), options=GRPC_OPTIONS)


def listen(server: grpc.aio.Server, address: str, settings: Settings) -> None:
    """Has a gRPC server listen; with certificates, to callers that show one."""
    if not settings.certificates:
        server.add_insecure_port(address)
        return
    uvicorn_options(settings)  # says what is wrong with a file, which gRPC does not
    ca, certificate, key = (path.read_bytes() for path in files(settings.certificates))
    credentials = grpc.ssl_server_credentials(
        [(key, certificate)], ca if settings.mutual_tls else None, require_client_auth=settings.mutual_tls
    )
    server.add_secure_port(address, credentials)


def web_client(settings: Settings, address: str = "", timeout: float = 5.0) -> httpx.Client:
    """A REST client with this process's token, as it is at each request, and its certificate."""
    tokens = Tokens.of(settings)

    def authorize(request: httpx.Request) -> httpx.Request:
        request.headers.update(dict(tokens.metadata()))
        return request

    return httpx.Client(base_url=address, auth=authorize, verify=client_tls(settings) or True, timeout=timeout)


def no_redis(url: str, error: Exception, otherwise: str) -> UserError | Unreachable:
    """What to tell a user whose Redis answers that it will not, or does not answer."""
    where = f"Redis at {shown(url).partition('://')[2]}"
    if isinstance(error, AuthenticationError | ResponseError):
        mend = "mend the password or the number in its address"
        return UserError(f"{where} refuses us ({error}); {mend}, or {otherwise}")
    return Unreachable(f"{where} does not answer ({error}); start it, or {otherwise}")


def shown(url: str) -> str:
    """An address without the password that may be in it, to be logged and written."""
    before, _, place = url.partition("?")[0].rpartition("@")
    return f"{before.partition('://')[0]}://{place}" if before else place


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
