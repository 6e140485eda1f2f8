"""The certificates of a process, in the forms that REST, gRPC and Redis take.

The files have the names of a kubernetes.io/tls secret: ca.crt is the trusted authority, tls.crt and tls.key are the
certificate and key of the process, as server and as client. All three read them again when they change, so
certificates are rotated without a restart; open connections keep theirs.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

from cepo.errors import UserError
from cepo.net.settings import Settings

CA, CERTIFICATE, KEY = "ca.crt", "tls.crt", "tls.key"
ATTEMPTS = 3
"""Readings of files that change meanwhile; the next handshake reads them again."""
log = logging.getLogger(__name__)


def files(certificates: str) -> Iterator[Path]:
    """The paths of ca.crt, tls.crt and tls.key.

    Raises:
        UserError: a file is missing.
    """
    for name in (CA, CERTIFICATE, KEY):
        path = Path(certificates) / name
        if not path.is_file():
            raise UserError(f"CEPO_CERTIFICATES={certificates} holds no {name}; cepo certs OUT creates all three files")
        yield path


class Identity(NamedTuple):
    """The certificates of a process at one moment."""

    ca: bytes
    certificate: bytes
    key: bytes
    server: ssl.SSLContext
    """For a server that requires certificates of its clients."""
    open_server: ssl.SSLContext
    """For a server that does not."""
    client: ssl.SSLContext


class Certificates:
    """The certificates of a folder, read again when its files change.

    Files that do not fit together, as in the middle of a rotation, are not used: the previous ones stay.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._seen: tuple[tuple[int, ...], ...] = ()
        self._identity: Identity | None = None
        self._lock = threading.Lock()  # gRPC asks from threads of its own

    def current(self) -> Identity:
        """The newest certificates that fit together.

        Raises:
            UserError: a file is missing or invalid, and there are no previous certificates.
        """
        with self._lock:
            for _ in range(ATTEMPTS):
                state = self._state()
                if self._identity is not None and state == self._seen:
                    break
                try:
                    identity = _read(self._folder)
                except UserError as error:
                    if self._identity is None:
                        raise
                    log.error("the previous certificates stay in use: %s", error)
                    self._seen = state
                    break
                if state == self._state():  # otherwise the files changed while they were read
                    if self._identity is not None:
                        log.info("CEPO_CERTIFICATES=%s: the certificates were read again", self._folder)
                    self._seen, self._identity = state, identity
            if self._identity is None:
                raise UserError(f"CEPO_CERTIFICATES={self._folder}: the files keep changing; start again")
            return self._identity

    def _state(self) -> tuple[tuple[int, ...], ...]:
        """A value that changes whenever a file changes."""
        stats: list[tuple[int, ...]] = []
        for name in (CA, CERTIFICATE, KEY):
            try:
                status = (Path(self._folder) / name).stat()
                stats.append((status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino))
            except OSError:
                stats.append(())
        return tuple(stats)


@cache
def certificates_of(folder: str) -> Certificates:
    """The certificates of a folder, shared by all connections of this process."""
    return Certificates(folder)


class RenewedContext(ssl.SSLContext):
    """A context whose every handshake takes the current certificates."""

    _certificates: Certificates
    _kind: str
    _alpn: list[str]

    @classmethod
    def of(cls, certificates: Certificates, kind: str) -> Self:
        """A context of an `Identity`.

        Args:
            kind: server, open_server or client.

        Raises:
            UserError: a file is missing or invalid.
        """
        context = cls(ssl.PROTOCOL_TLS_CLIENT if kind == "client" else ssl.PROTOCOL_TLS_SERVER)
        context._certificates, context._kind, context._alpn = certificates, kind, []
        context._current()
        return context

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        """Sets the protocols of the application layer for the following handshakes."""
        self._alpn = list(alpn_protocols)

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Begins a handshake over buffers, as asyncio does."""
        return self._current().wrap_bio(*args, **options)

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """Begins a handshake over a socket."""
        return self._current().wrap_socket(*args, **options)

    def _current(self) -> ssl.SSLContext:
        context: ssl.SSLContext = getattr(self._certificates.current(), self._kind)
        if self._kind == "client":
            context.check_hostname = self.check_hostname
        if self._alpn:
            context.set_alpn_protocols(self._alpn)
        return context


def server_tls(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context of a REST server; None without certificates.

    Raises:
        UserError: a certificate or key cannot be read.
    """
    if not settings.certificates:
        return None
    kind = "server" if settings.mutual_tls else "open_server"
    return RenewedContext.of(certificates_of(settings.certificates), kind)


def client_tls(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context of a REST client, which checks the server's name; None without certificates.

    Raises:
        UserError: a certificate or key cannot be read.
    """
    return RenewedContext.of(certificates_of(settings.certificates), "client") if settings.certificates else None


def redis_options(url: str, certificates: str) -> dict[str, Any]:
    """The TLS options of a Redis client; empty unless the URL begins with `rediss://`."""
    if not (url.startswith("rediss://") and certificates):
        return {}
    ca, certificate, key = map(str, files(certificates))
    return {"ssl_ca_certs": ca, "ssl_certfile": certificate, "ssl_keyfile": key, "ssl_check_hostname": True}


def _read(folder: str) -> Identity:
    paths = tuple(files(folder))
    contexts = []
    try:
        ca, certificate, key = (path.read_bytes() for path in paths)
        for protocol, verify in (
            (ssl.PROTOCOL_TLS_SERVER, ssl.CERT_REQUIRED),
            (ssl.PROTOCOL_TLS_SERVER, ssl.CERT_NONE),
            (ssl.PROTOCOL_TLS_CLIENT, ssl.CERT_REQUIRED),
        ):
            context = ssl.SSLContext(protocol)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_verify_locations(paths[0])
            context.load_cert_chain(paths[1], paths[2])
            context.verify_mode = verify
            contexts.append(context)
    except (ssl.SSLError, OSError) as error:
        raise UserError(f"CEPO_CERTIFICATES={folder}: {CA}, {CERTIFICATE} or {KEY}: {error}") from error
    return Identity(ca, certificate, key, *contexts)
