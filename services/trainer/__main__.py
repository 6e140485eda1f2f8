"""`python -m services.trainer RUN_DIR`: the trainer of the run whose config.toml is in that folder.

It always goes on from the newest checkpoint there is, so a trainer that died is simply started again.
"""

from __future__ import annotations

import asyncio
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc
from fastapi import FastAPI

from cepo import chassis
from cepo.bus import RedisBus
from cepo.data import load_problems
from cepo.image_cache import serve_images
from cepo.images import ImageStore
from cepo.pb.cepo.v1 import services_pb2, services_pb2_grpc
from cepo.rendering import Renderer
from cepo.rundir import RunDir
from cepo.runfile import load
from cepo.settings import Settings
from cepo.wire import to_proto
from services.trainer.checkpoint import Checkpoints
from services.trainer.collector import Collector
from services.trainer.feeder import Feeder
from services.trainer.learner import Learner
from services.trainer.loop import Run, Status, train
from services.trainer.publisher import Publisher
from services.trainer.report import Trackers

KEPT_IMAGES = 64
"""Whose pixels the trainer keeps at hand: siblings and follow-ups show the same ones."""


async def build(settings: Settings) -> chassis.Service:
    folder = RunDir(Path(sys.argv[1]))
    bus = RedisBus(settings.redis_url, settings.claim_seconds)
    await bus.check()
    run = assemble(folder, bus, settings)
    drain = asyncio.Event()

    class Servicer(services_pb2_grpc.TrainerServiceServicer):
        async def Status(self, request: Any, context: Any) -> services_pb2.StatusReply:
            status = run.status
            return services_pb2.StatusReply(
                run=status.run,
                phase=status.phase,
                step=status.step,
                steps=status.steps,
                policy=to_proto(status.policy),
            )

        async def Drain(self, request: Any, context: Any) -> services_pb2.DrainReply:
            drain.set()
            return services_pb2.DrainReply(step=run.status.step)

        FetchPolicy = staticmethod(run.publisher.stream)
        FetchImage = staticmethod(serve_images(ImageStore(folder.images)))

    async def work(stop: asyncio.Event) -> None:
        async def forward() -> None:
            await stop.wait()
            drain.set()

        service.ready.set()
        forwarding = asyncio.create_task(forward())
        try:
            await train(run, drain)
        finally:
            forwarding.cancel()
            await bus.close()

    def register(server: grpc.aio.Server) -> None:
        services_pb2_grpc.add_TrainerServiceServicer_to_server(Servicer(), server)

    service = chassis.Service("trainer", "cepo.v1.TrainerService", register, work, _rest(run.status))
    return service


def assemble(folder: RunDir, bus: RedisBus, settings: Settings) -> Run:
    """Builds the parts of a run from its folder."""
    if settings.threads:
        import torch

        torch.set_num_threads(settings.threads)
    config = load(folder.config)
    renderer = Renderer(config.model.path)
    excluded = folder.excluded_rows()
    store = ImageStore(folder.images)
    problems = load_problems(config, renderer, excluded=excluded.get("train"), store=store)
    held_out = None
    if config.data.eval:
        held_out = load_problems(config, renderer, held_out=True, excluded=excluded.get("eval"), store=store)
    learner = Learner(config, lru_cache(KEPT_IMAGES)(lambda image: renderer.pixels.patches(image, store.read(image))))
    publisher = Publisher(folder.adapters, learner, bus, renderer.canary_ids, renderer.sha256, config.model.dtype)
    return Run(
        config=config,
        folder=folder,
        feeder=Feeder(config, folder.name, problems, held_out, bus),
        collector=Collector(bus, folder.name, publisher.prove),
        learner=learner,
        publisher=publisher,
        checkpoints=Checkpoints(
            folder.checkpoints, learner, publisher, config.checkpoint.every, config.checkpoint.keep
        ),
        trackers=Trackers(config, folder),
        status=Status(folder.name, config.loop.steps),
    )


def _rest(status: Status) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/status", tags=["run"])
    async def get_status() -> dict[str, Any]:
        return {
            "run": status.run,
            "phase": status.phase,
            "step": status.step,
            "steps": status.steps,
            "policy_version": status.policy.version,
            "metrics": status.row,
        }

    return app


if __name__ == "__main__":
    chassis.main("trainer", build)
