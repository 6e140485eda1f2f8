"""`cepo dashboard RUN_DIR`: the run dashboard over a run folder, of a run that works or has ended."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cepo.errors import UserError
from cepo.net.settings import Settings
from cepo.run.folder import RunDir

PORT = 8050


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("dashboard", help="a page with the curves, groups and failures of a run")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument(
        "--compare", type=Path, action="append", default=[], metavar="RUN_DIR", help="another run to draw beside it"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0 takes a free one")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serves the page until it is interrupted."""
    import uvicorn

    from cepo.dashboard.folder import Watched
    from cepo.dashboard.rest import application
    from cepo.net.connections import check_exposure
    from cepo.net.rest import guard
    from cepo.net.tls import uvicorn_options
    from cepo.service.chassis import bound

    if not 0 <= options.port <= 65535:
        raise UserError(f"--port {options.port}: give one from 0 to 65535")
    settings = Settings.from_environment()
    check_exposure(settings)
    app = application([Watched(RunDir(path)) for path in (options.run_dir, *options.compare)])
    guard(app, settings)
    listener = bound(settings.host, options.port, "HTTP", "give another --port")
    tls = uvicorn_options(settings)
    scheme, port = "https" if tls else "http", listener.getsockname()[1]
    print(f"dashboard of {options.run_dir} on {scheme}://{settings.host}:{port}/", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, **tls))
    server.run(sockets=[listener])
    return 0
