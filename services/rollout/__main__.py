"""`python -m services.rollout`: the rollout service, configured by CEPO_* environment variables."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import grpc

from cepo.messages.groups import PromptTask, Stage
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2_grpc
from cepo.prompts.renderer import Renderer
from cepo.service.adapters import resident
from cepo.service.bus import RedisBus
from cepo.service.chassis import Service, main, stage_service, unary
from cepo.service.image_cache import trainer_images
from cepo.service.relay import AdapterRelay
from cepo.service.stage import StageLoop
from services.rollout.environments.pool import Environments
from services.rollout.handler import make_handler
from services.rollout.vllm_patches import vllm_names


async def build(settings: Settings) -> Service:
    """Starts a vLLM engine and builds the service around it."""
    with vllm_names():
        from services.rollout.engine import VllmGenerator  # imports vLLM, which only this function needs
        from services.rollout.rest import application

    bus = await RedisBus.connect(settings)
    renderer = Renderer(settings.model, settings.template)
    relay = AdapterRelay("rollout", settings)
    generator = VllmGenerator(settings, renderer, relay.cache, trainer_images(settings).read)
    names = settings.environments.split(",") if settings.environments else ()
    environments = Environments(names, settings.environment_processes)
    handler = make_handler(generator, renderer, settings.max_model_len, environments)

    class RolloutServicer(services_pb2_grpc.RolloutServiceServicer):
        Generate = staticmethod(unary(PromptTask, handler))

    def register(server: grpc.aio.Server) -> None:
        services_pb2_grpc.add_RolloutServiceServicer_to_server(RolloutServicer(), server)
        relay.register(server)

    loop = StageLoop.of(settings, bus, Stage.ROLLOUT, handler)
    engine = _beside(environments, resident(generator, bus, relay.cache, generator.watch))
    app = await application(generator, settings)
    return stage_service("rollout", "cepo.v1.RolloutService", register, loop, engine, app)


@contextlib.asynccontextmanager
async def _beside(environments: Environments, engine: AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
    async with environments, engine:
        yield


if __name__ == "__main__":
    main("rollout", build)
