"""Valid, foreign and expired certificates, a toy service in the chassis, and a Redis with TLS."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import pytest

from cepo.net.certificates import Authority
from cepo.net.tls import CA

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Certificates:
    """Folders of ca.crt, tls.crt and tls.key."""

    service: Path
    client: Path
    stranger: Path
    """Signed by another authority; trusts ours."""
    expired: Path
    """Signed by our authority, expired yesterday."""
    elsewhere: Path
    """Signed by our authority, for another host name."""


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    root, now = tmp_path_factory.mktemp("certificates"), datetime.datetime.now(datetime.UTC)
    ours = Authority.new("ours", now - 9 * DAY, now + DAY)
    theirs = Authority.new("theirs", now - 9 * DAY, now + DAY)
    made = Certificates(*(root / name for name in ("service", "client", "stranger", "expired", "elsewhere")))
    for folder in (made.service, made.client):
        ours.issue(folder, folder.name, ["localhost", "127.0.0.1"], now - DAY, now + DAY)
    theirs.issue(made.stranger, "stranger", ["127.0.0.1"], now - DAY, now + DAY)
    (made.stranger / CA).write_bytes((made.client / CA).read_bytes())
    ours.issue(made.expired, "expired", ["127.0.0.1"], now - 8 * DAY, now - DAY)
    ours.issue(made.elsewhere, "elsewhere", ["elsewhere.example"], now - DAY, now + DAY)
    return made
