"""Serves a REST application on a loopback port, from a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import Any

import uvicorn


@contextmanager
def served(app: Any, port: int = 0, engine: AbstractAsyncContextManager[Any] | None = None) -> Iterator[str]:
    """Yields the address, without a final slash. Port 0 picks a free port; `engine` runs meanwhile."""
    config = uvicorn.Config(app, port=port, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)

    async def serve() -> None:
        async with engine or nullcontext():
            await server.serve()

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
