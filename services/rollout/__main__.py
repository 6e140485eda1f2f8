"""`python -m services.rollout`: the rollout service, from CEPO_* variables."""

from __future__ import annotations

import asyncio
import os

import grpc

from cepo import chassis
from cepo.adapters import AdapterCache, fetch_from_trainer, prefetch
from cepo.bus import RedisBus
from cepo.contracts import BASE_POLICY, PolicyRef, PromptTask, Stage
from cepo.pb.cepo.v1 import services_pb2_grpc
from cepo.rendering import Renderer
from cepo.settings import Settings
from cepo.stage import StageLoop
from services.rollout.handler import make_handler


async def build(settings: Settings) -> chassis.Service:
    bus = RedisBus(settings.redis_url, settings.claim_seconds)
    await bus.check()
    renderer = Renderer(settings.model)

    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        return await fetch_from_trainer(settings.trainer_address, settings.token, policy)

    adapters = AdapterCache(settings.adapter_cache / f"rollout-{os.getpid()}", fetch, keep=settings.max_loras + 2)

    from services.rollout.engine import VllmGenerator  # vLLM starts only in a process that samples

    generator = VllmGenerator(settings, renderer, adapters)
    handler = make_handler(generator, renderer, settings.max_model_len)

    class Servicer(services_pb2_grpc.RolloutServiceServicer):
        Generate = staticmethod(chassis.unary(PromptTask, handler))

    async def work(stop: asyncio.Event) -> None:
        await generator.load(BASE_POLICY)
        service.ready.set()
        watching = asyncio.create_task(prefetch(bus.announcements(), generator.load))
        loop = StageLoop(
            bus, Stage.ROLLOUT, handler, settings.concurrency, settings.claim_seconds, settings.max_deliveries
        )
        try:
            await loop.run(stop)
        finally:
            watching.cancel()
            generator.close()
            adapters.clear()

    def register(server: grpc.aio.Server) -> None:
        services_pb2_grpc.add_RolloutServiceServicer_to_server(Servicer(), server)

    service = chassis.Service("rollout", "cepo.v1.RolloutService", register, work)
    return service


if __name__ == "__main__":
    chassis.main("rollout", build)
