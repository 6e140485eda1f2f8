"""`cepo certs OUT`: a development authority, and a folder of certificates for each service."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from cepo.errors import UserError
from cepo.run.deployment import SPECS

NAMES = (*SPECS, "redis", "client")
HOST = re.compile(r"(\*\.)?[A-Za-z0-9._-]+")
"""A DNS name, which may begin with `*.`, or an IPv4 address."""
DAYS = 90
MAX_DAYS = 36500
NAMESPACE = "cepo"


def certs(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder; set CEPO_CERTIFICATES to it.")],
    *,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME", help="A further name or address of the services; may be repeated."),
    ] = None,
    days: Annotated[int, typer.Option("--days", help="Days for which the certificates are valid.")] = DAYS,
) -> None:
    """Writes OUT/ca.key and, for each service, OUT/NAME/{ca.crt,tls.crt,tls.key}.

    Raises:
        UserError: the folder exists, an option is out of range, or the package cryptography is not installed.
    """
    hosts = host or []
    if find_spec("cryptography") is None:
        raise UserError("the package cryptography is not installed; pip install 'cepo[certs]'")
    if out.exists():
        raise UserError(f"{out} exists; give a new folder")
    if not 1 <= days <= MAX_DAYS:
        raise UserError(f"--days {days}: give 1 to {MAX_DAYS}")
    for name in hosts:
        if not HOST.fullmatch(name) and not _is_address(name):
            raise UserError(f"--host {name!r} is neither a name nor an address; give one, without scheme and port")
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)  # clocks differ between machines
    make(out, hosts, begin, begin + datetime.timedelta(days=days))
    print(f"{', '.join(NAMES)}: {out}/NAME/{{ca.crt,tls.crt,tls.key}}, valid for {days} days")
    print(f"use them with CEPO_CERTIFICATES={out}; keep {out}/ca.key away from the services")


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False


def make(out: Path, hosts: Sequence[str], begin: datetime.datetime, end: datetime.datetime) -> None:
    """Writes an authority with its key, and a certificate of each name that it signed."""
    from cepo.net.certificates import LOOPBACK, Authority, write_key
    from cepo.net.files import make_folder

    authority = Authority.new("cepo development CA", begin, end)
    make_folder(out, mode=0o700)
    write_key(out / "ca.key", authority.key)
    for name in NAMES:
        cluster = (name, f"{name}.{NAMESPACE}", f"{name}.{NAMESPACE}.svc", f"{name}.{NAMESPACE}.svc.cluster.local")
        authority.issue(out / name, name, [*cluster, *LOOPBACK, *hosts], begin, end)
