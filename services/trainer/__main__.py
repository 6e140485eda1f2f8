"""`python -m services.trainer RUN_DIR`: the trainer of the run whose config.toml is in that folder.

It resumes from the newest checkpoint of the folder if there is one, so a trainer that died is simply started again.
With several processes (`torchrun -m services.trainer RUN_DIR`, or `engine.trainer_processes`), rank 0 is the service.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from cepo.dashboard.folder import Watched
from cepo.dashboard.rest import application
from cepo.data.stored import digests, stored
from cepo.errors import UserError
from cepo.messages.wire import to_proto
from cepo.net.settings import Settings
from cepo.net.torchrun import Place
from cepo.pb.cepo.v1 import services_pb2, services_pb2_grpc
from cepo.prompts.images import ImageStore
from cepo.prompts.renderer import Renderer
from cepo.prompts.spans import pieces
from cepo.run.file import load
from cepo.run.folder import RunDir
from cepo.run.lock import IN_USE, FolderInUse, locked
from cepo.run.rollouts import Rollouts
from cepo.service import chassis
from cepo.service.bus import Bus, RedisBus
from cepo.service.image_cache import serve_images
from services.trainer.checkpoint import Checkpoints
from services.trainer.collector import Collector
from services.trainer.colocated import teaching
from services.trainer.feeder import Feeder
from services.trainer.learning.processes import make_learner, serve_rank, start_ranks
from services.trainer.loop import Run, train
from services.trainer.outside.calls import SessionCalls
from services.trainer.outside.feeder import Arrivals, OutsideFeeder
from services.trainer.outside.inbox import Inbox
from services.trainer.outside.intake import Intake
from services.trainer.outside.rest import add_groups
from services.trainer.pairs import PairFeeder
from services.trainer.publisher import Publisher
from services.trainer.rollouts import CachedDecoder, RolloutWriter
from services.trainer.status import Status
from services.trainer.teacher import Teacher
from services.trainer.trackers import Trackers


class TrainerServicer(services_pb2_grpc.TrainerServiceServicer):
    """The gRPC methods of a run's trainer."""

    def __init__(self, run: Run, drain: asyncio.Event, intake: Intake | None = None) -> None:
        """Serves a run.

        Args:
            drain: what `Drain` sets; the run ends after the current step.
            intake: takes groups from outside; None for a run that samples its own responses.
        """
        calls = SessionCalls(intake)
        self.Terms, self.TakeGroup = calls.terms, calls.take
        self._status, self._drain = run.status, drain
        self.FetchPolicy = run.publisher.stream
        self.FetchImage = serve_images(ImageStore(run.folder.images))

    async def Status(self, request: Any, context: Any) -> services_pb2.StatusReply:
        """The phase, the step and the newest policy of the run."""
        status = self._status
        return services_pb2.StatusReply(
            run=status.folder.name,
            phase=status.phase,
            step=status.step,
            steps=status.steps,
            policy=to_proto(status.policy),
        )

    async def Drain(self, request: Any, context: Any) -> services_pb2.DrainReply:
        """Ends the run after the current step, and returns that step."""
        self._drain.set()
        return services_pb2.DrainReply(step=self._status.step)


class Trainer:
    """A run that trains, as the work of a service."""

    def __init__(self, run: Run, bus: Bus, settings: Settings) -> None:
        self._run = run
        self._bus = bus
        page = f", http://{settings.host}:{settings.http_port}" if settings.http_port else ""
        self._holder = f"{socket.gethostname()} (process {os.getpid()}{page})"
        self._drain = asyncio.Event()
        self._intake: Intake | None = None
        dashboard = application([Watched(run.folder)])
        if isinstance(run.feeder, OutsideFeeder):
            renderer = Renderer(run.config.model.path, run.config.data.template)
            self._intake = Intake(run.feeder, renderer, run.collector.expect)
            add_groups(dashboard, self._intake)
        self.service = chassis.Service("trainer", "cepo.v1.TrainerService", self._register, self._work, dashboard)

    def _register(self, server: grpc.aio.Server) -> None:
        servicer = TrainerServicer(self._run, self._drain, self._intake)
        services_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server)

    async def _work(self, stop: asyncio.Event) -> None:
        """Trains to the last step, or to the end of the current step once the service is told to stop."""
        try:
            async with self._bus.lease(self._run.folder.name, self._holder):
                await self._train(stop)
        finally:
            await self._bus.close()

    async def _train(self, stop: asyncio.Event) -> None:
        self.service.ready.set()
        background = [
            asyncio.create_task(self._drain_after(stop)),
            asyncio.create_task(self._run.status.beat(self._bus)),
        ]
        try:
            async with self._run.beside:
                await train(self._run, self._drain)
            if stop.is_set():
                self.service.code = chassis.STOPPED
            self._run.learner.ranks.close(self.service.code)
        finally:
            for task in background:
                task.cancel()

    async def _drain_after(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._drain.set()


async def build(folder: RunDir, settings: Settings) -> chassis.Service:
    """The service that trains the run of a folder."""
    bus = await RedisBus.connect(settings)
    return Trainer(assemble(folder, bus, settings), bus, settings).service


def assemble(folder: RunDir, bus: Bus, settings: Settings) -> Run:
    """Builds the parts of a run from its folder."""
    config = load(folder.config)
    ranks = start_ranks(folder, config)
    renderer = Renderer(config.model.path, config.data.template)
    store = ImageStore(folder.images)
    problems = replace(stored(folder, "train"), shares=config.data.shares)
    held_out = stored(folder, "eval") if config.data.eval else None
    feeder = Feeder(config, folder.name, problems, held_out, bus)
    if config.algorithm.offline:
        feeder = PairFeeder(config, folder.name, problems, held_out, bus, renderer)
    if config.data.source == "groups":
        inbox = Inbox(folder.groups, config.sampling.prompts)
        feeder = OutsideFeeder(config, folder.name, problems, held_out, bus, Arrivals(inbox))
    learner = make_learner(config, folder, renderer, ranks, settings)
    canary_ids = renderer.canary_ids(config.model.max_length - 1)  # the engines sample one token after it
    publisher = Publisher(folder.adapters, learner, bus, canary_ids, renderer.sha256, config.model.dtype)
    teacher = Teacher(config.algorithm.teacher_source, learner, publisher)
    status = Status(folder, config.loop.steps)
    beside: AbstractAsyncContextManager[None] = nullcontext()
    if config.engine.teacher == "colocated":
        beside = teaching(config, settings, bus, renderer, store, learner, publisher)
    return Run(
        config=config,
        folder=folder,
        feeder=feeder,
        collector=Collector(bus, folder.name, publisher.check, feeder.publish),
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
            status.note,
            feeder.history if config.data.curriculum else None,
        ),
        trackers=Trackers(config, folder, status.note),
        status=status,
        rollouts=RolloutWriter(
            Rollouts(folder.rollouts), config.telemetry, partial(pieces, CachedDecoder(renderer.tokenizer))
        ),
        beside=beside,
    )


def main(arguments: Sequence[str]) -> None:
    """Entry point of every process of a trainer.

    Args:
        arguments: the run folder; for a process that rank 0 started, also where the processes meet.
    """
    with chassis.mistakes_told("trainer"):
        if not arguments:
            raise UserError("give the folder of a run: python -m services.trainer RUN_DIR")
        folder, place = RunDir(Path(arguments[0])), Place.from_environment()
        if place is not None and place.rank:
            serve_rank(folder, place, *arguments[1:])
        else:
            _serve(folder)


def _serve(folder: RunDir) -> None:
    """Runs the service, while no other trainer of the run does."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder.trainer_lock))
        except FolderInUse as error:
            sys.stderr.write(f"cepo trainer: {error}\n")
            sys.exit(IN_USE)
        chassis.main("trainer", partial(build, folder))


if __name__ == "__main__":
    main(sys.argv[1:])
