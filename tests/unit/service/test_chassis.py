"""The chassis with a service that does nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx

from cepo.net.settings import Settings
from cepo.service.chassis import Service, run


async def test_replies_on_a_kept_connection_do_not_wait_for_the_clients_acknowledgement(
    free_port: Callable[[], int],
) -> None:
    done = asyncio.Event()

    async def work(stop: asyncio.Event) -> None:
        await done.wait()

    settings = Settings(http_port=free_port(), grpc_port=free_port())
    running = asyncio.create_task(run(Service("toy", "toy", lambda server: None, work), settings))
    seconds = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.http_port}") as client:
        while not running.done():
            try:
                await client.get("/healthz")
                break
            except httpx.ConnectError:
                await asyncio.sleep(0.05)
        for _ in range(50):
            begun = time.perf_counter()
            assert (await client.post("/healthz", json={"method": "not allowed"})).status_code == 405
            seconds.append(time.perf_counter() - begun)
    done.set()
    await running
    assert min(seconds) < 0.025  # Nagle's algorithm makes each of them at least 0.04 s
