"""`python -m services.trainer RUN_DIR`: the trainer of the run whose config.toml is in that folder.

It always goes on from the newest checkpoint there is, so a trainer that died is simply started again. Where it is one
of several processes (`torchrun -m services.trainer RUN_DIR`, or `engine.trainer_processes`), rank 0 is the service.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from cepo.dashboard.folder import Watched
from cepo.dashboard.rest import application
from cepo.data.stored import digests, stored
from cepo.errors import UserError
from cepo.messages.wire import to_proto
from cepo.net.settings import Place, Settings
from cepo.pb.cepo.v1 import services_pb2, services_pb2_grpc
from cepo.prompts.images import ImageStore
from cepo.prompts.renderer import Renderer
from cepo.prompts.spans import pieces
from cepo.run.file import load
from cepo.run.folder import RunDir
from cepo.service import chassis
from cepo.service.bus import Bus, RedisBus
from cepo.service.image_cache import serve_images
from services.trainer.checkpoint import Checkpoints
from services.trainer.collector import Collector
from services.trainer.colocated import teaching
from services.trainer.feeder import Feeder
from services.trainer.learning.processes import follow, lead, make_learner
from services.trainer.loop import Run, train
from services.trainer.pairs import PairFeeder
from services.trainer.publisher import Publisher
from services.trainer.report import Trackers
from services.trainer.status import Status
from services.trainer.teacher import Teacher


async def build(settings: Settings) -> chassis.Service:
    folder = RunDir(Path(sys.argv[1]))
    bus = await RedisBus.connect(settings)
    run = assemble(folder, bus, settings)
    drain = asyncio.Event()

    class Servicer(services_pb2_grpc.TrainerServiceServicer):
        async def Status(self, request: Any, context: Any) -> services_pb2.StatusReply:
            status = run.status
            return services_pb2.StatusReply(
                run=status.folder.name,
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
        beside = [asyncio.create_task(forward()), asyncio.create_task(run.status.beat(bus))]
        try:
            async with run.beside:
                await train(run, drain)
            if stop.is_set():
                service.code = chassis.STOPPED
            run.learner.ranks.close(service.code)
        finally:
            for task in beside:
                task.cancel()
            await bus.close()

    def register(server: grpc.aio.Server) -> None:
        services_pb2_grpc.add_TrainerServiceServicer_to_server(Servicer(), server)

    service = chassis.Service("trainer", "cepo.v1.TrainerService", register, work, application([Watched(folder)]))
    return service


def assemble(folder: RunDir, bus: Bus, settings: Settings) -> Run:
    """Builds the parts of a run from its folder."""
    config = load(folder.config)
    ranks = lead(folder, config)
    renderer = Renderer(config.model.path)
    store = ImageStore(folder.images)
    problems = stored(folder, "train")
    held_out = stored(folder, "eval") if config.data.eval else None
    feeder = Feeder(config, folder.name, problems, held_out, bus)
    if config.algorithm.offline:
        feeder = PairFeeder(config, folder.name, problems, held_out, bus, renderer)
    learner = make_learner(config, folder, renderer, ranks, settings)
    publisher = Publisher(folder.adapters, learner, bus, renderer.canary_ids, renderer.sha256, config.model.dtype)
    teacher = Teacher(config.algorithm.teacher_source, learner, publisher)
    beside: AbstractAsyncContextManager[None] = nullcontext()
    if config.engine.teacher == "colocated":
        beside = teaching(config, settings, bus, renderer, store, learner, publisher)
    return Run(
        config=config,
        folder=folder,
        feeder=feeder,
        collector=Collector(bus, folder.name, publisher.prove),
        learner=learner,
        publisher=publisher,
        teacher=teacher,
        checkpoints=Checkpoints(
            folder.checkpoints,
            learner,
            publisher,
            teacher,
            config.checkpoint.every,
            config.checkpoint.keep,
            config.checkpoint.keep_policies,
            digests(folder)["train"],
        ),
        trackers=Trackers(config, folder),
        status=Status(folder, config.loop.steps),
        pieces=partial(pieces, renderer.tokenizer),
        beside=beside,
    )


def main() -> None:
    """Entry point of every process of a trainer."""
    with chassis.mistakes_told("trainer"):
        place = Place.from_environment()
        if len(sys.argv) < 2:
            raise UserError("give the folder of a run: python -m services.trainer RUN_DIR")
        if place is not None and place.rank:
            follow(RunDir(Path(sys.argv[1])), place, *sys.argv[2:])
        else:
            chassis.main("trainer", build)


if __name__ == "__main__":
    main()
