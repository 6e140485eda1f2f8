"""`cepo dashboard RUN_DIR`: the dashboard of a run that is training or has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cepo.errors import UserError
from cepo.net.settings import Settings
from cepo.run.folder import RunDir

PORT = 8050


def dashboard(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")],
    *,
    compare: Annotated[
        list[Path] | None,
        typer.Option("--compare", metavar="RUN_DIR", help="Another run to draw beside it; may be repeated."),
    ] = None,
    port: Annotated[int, typer.Option("--port", help="The port to listen on; 0 takes a free port.")] = PORT,
) -> None:
    """Serves the page until it is interrupted.

    Raises:
        UserError: a folder holds no run, or the port cannot be used.
    """
    import uvicorn

    from cepo.dashboard.folder import Watched
    from cepo.dashboard.rest import application
    from cepo.net.connections import check_exposure
    from cepo.net.rest import guard
    from cepo.net.serving import web_server
    from cepo.service.chassis import bound

    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: give one from 0 to 65535")
    settings = Settings.from_environment()
    check_exposure(settings)
    app = application([Watched(RunDir(path)) for path in (run_dir, *(compare or []))])
    guard(app, settings)
    listener = bound(settings.host, port, "HTTP", "give another --port")
    scheme = "https" if settings.certificates else "http"
    print(f"dashboard of {run_dir} on {scheme}://{settings.host}:{listener.getsockname()[1]}/", flush=True)
    web_server(app, settings, uvicorn.Server, log_level="warning", timeout_graceful_shutdown=1).run(sockets=[listener])
