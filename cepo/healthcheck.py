"""The health check of containers: `python -m cepo.healthcheck` exits with 0 if the local service is ready.

It asks the service on CEPO_HTTP_PORT. `python -m cepo.healthcheck /healthz` asks whether the service is alive. If the
trainer spans several machines, only the first one serves HTTP. The others always count as healthy: they exit on a
failure, and together with the first.
"""

from __future__ import annotations

import sys
from urllib.error import URLError
from urllib.request import urlopen

from cepo.errors import UserError
from cepo.net.settings import Settings
from cepo.net.tls import client_tls
from cepo.net.torchrun import node_rank

TIMEOUT_SECONDS = 3.0


def ready(settings: Settings, path: str = "/readyz") -> bool:
    """Whether the service on this machine replies with 200."""
    try:
        tls = client_tls(settings)
        if tls is not None:
            tls.check_hostname = False  # a certificate need not name loopback; its signature is verified
        scheme = "https" if tls else "http"
        with urlopen(f"{scheme}://127.0.0.1:{settings.http_port}{path}", timeout=TIMEOUT_SECONDS, context=tls) as reply:
            return bool(reply.status == 200)
    except (URLError, OSError, UserError):
        return False


if __name__ == "__main__":
    sys.exit(not (node_rank() or ready(Settings.from_environment(), *sys.argv[1:])))
