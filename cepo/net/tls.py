"""The certificates of a process, in the forms that uvicorn, httpx and Redis take.

The files have the names of a kubernetes.io/tls secret: ca.crt is the trusted authority, tls.crt and tls.key are the
certificate and key of the process, as server and as client. They are read when a process starts.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cepo.errors import UserError
from cepo.net.settings import Settings

CA, CERTIFICATE, KEY = "ca.crt", "tls.crt", "tls.key"


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


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """The TLS options of uvicorn; empty without certificates.

    Raises:
        UserError: a certificate or key cannot be read.
    """
    if not settings.certificates:
        return {}
    _context(ssl.PROTOCOL_TLS_SERVER, settings)
    ca, certificate, key = map(str, files(settings.certificates))
    required = ssl.CERT_REQUIRED if settings.mutual_tls else ssl.CERT_NONE
    return {"ssl_ca_certs": ca, "ssl_certfile": certificate, "ssl_keyfile": key, "ssl_cert_reqs": required}


def client_tls(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context of a REST client, which checks the server's name; None without certificates."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, settings) if settings.certificates else None


def redis_options(url: str, certificates: str) -> dict[str, Any]:
    """The TLS options of a Redis client; empty unless the URL begins with `rediss://`."""
    if not (url.startswith("rediss://") and certificates):
        return {}
    ca, certificate, key = map(str, files(certificates))
    return {"ssl_ca_certs": ca, "ssl_certfile": certificate, "ssl_keyfile": key, "ssl_check_hostname": True}


def _context(protocol: int, settings: Settings) -> ssl.SSLContext:
    ca, certificate, key = files(settings.certificates)
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(ca)
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise UserError(f"CEPO_CERTIFICATES={settings.certificates}: {CA}, {CERTIFICATE} or {KEY}: {error}") from error
    return context
