"""`python -m cepo.healthcheck`: exit 0 if the service on CEPO_HTTP_PORT of this machine is ready; for containers."""

from __future__ import annotations

import sys
from urllib.error import URLError
from urllib.request import urlopen

from cepo.settings import Settings

TIMEOUT_SECONDS = 3.0


def ready(port: int) -> bool:
    """Whether the service says so."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=TIMEOUT_SECONDS) as reply:
            return bool(reply.status == 200)
    except (URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(not ready(Settings.from_environment().http_port))
