"""`cepo certs OUT`: a development authority, and a folder of certificates for each service."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import ipaddress
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cepo.errors import UserError
from cepo.run.deployment import SPECS

NAMES = (*SPECS, "redis", "client")
HOST = re.compile(r"(\*\.)?[A-Za-z0-9._-]+")
"""A name, for all below it with a star, or an address of version 4."""
DAYS = 90
MAX_DAYS = 36500
NAMESPACE = "cepo"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("certs", help="make a development authority and a certificate for each service")
    parser.add_argument("out", type=Path, help="a new folder; CEPO_CERTIFICATES then names it")
    parser.add_argument(
        "--host", action="append", default=[], metavar="NAME", help="one more name or address of the services"
    )
    parser.add_argument("--days", type=int, default=DAYS, help=f"how long they hold (default: {DAYS})")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Writes OUT/ca.key and OUT/NAME/{ca.crt,tls.crt,tls.key}."""
    if find_spec("cryptography") is None:
        raise UserError("the package cryptography is not installed; pip install 'cepo[certs]'")
    if options.out.exists():
        raise UserError(f"{options.out} exists; give a new folder")
    if not 1 <= options.days <= MAX_DAYS:
        raise UserError(f"--days {options.days}: give 1 to {MAX_DAYS}")
    for host in options.host:
        if not HOST.fullmatch(host) and not _is_address(host):
            raise UserError(f"--host {host!r} is neither a name nor an address; give one, without scheme and port")
    begins = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)  # clocks differ
    make(options.out, options.host, begins, begins + datetime.timedelta(days=options.days))
    print(f"{', '.join(NAMES)}: {options.out}/NAME/{{ca.crt,tls.crt,tls.key}}, valid for {options.days} days")
    print(f"use them with CEPO_CERTIFICATES={options.out}; keep {options.out}/ca.key away from the services")
    return 0


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False


def make(out: Path, hosts: list[str], begins: datetime.datetime, ends: datetime.datetime) -> None:
    """The folders of every name, under an authority whose key is written beside them."""
    from cepo.net.certificates import LOOPBACK, Authority, write_key

    authority = Authority.new("cepo development CA", begins, ends)
    out.mkdir(parents=True, mode=0o700)
    write_key(out / "ca.key", authority.key)
    for name in NAMES:
        inside = (name, f"{name}.{NAMESPACE}", f"{name}.{NAMESPACE}.svc", f"{name}.{NAMESPACE}.svc.cluster.local")
        authority.issue(out / name, name, [*inside, *LOOPBACK, *hosts], begins, ends)
