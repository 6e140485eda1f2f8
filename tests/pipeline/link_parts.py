"""The trainer and the rollout worker of a small run: `python -m tests.pipeline.link_parts trainer FILE`, or `rollout`.

Each runs on its own host. Bus, stage loop, collector, adapter cache and both servers are the production code. The
weights are random bytes, and every task gets the same samples.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import grpc

from cepo.messages.groups import PolicyProof, PolicyRef, PromptTask, RolloutGroup, Stage
from cepo.messages.wire import from_proto
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2, services_pb2_grpc
from cepo.service import adapters, chassis
from cepo.service.adapters import FILES, resident, trainer_cache
from cepo.service.bus import RedisBus, stream_of
from cepo.service.metrics import collected
from cepo.service.stage import StageLoop
from cepo.service.telemetry import loading
from cepo.testing import ToyEngine
from services.trainer.collector import Collector
from tests.helpers.factories import make_group, make_task

GROUPS = 16
SAMPLE_SECONDS = 0.2


class Engine(ToyEngine):
    """An engine without a model, which fetches every adapter that it is asked to load."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.cache = trainer_cache("rollout", settings)

    async def load(self, policy: PolicyRef) -> PolicyProof:
        with loading(policy):
            if policy.version:
                await self.cache.folder(policy)
            return self.proof(policy)


async def rollout(settings: Settings) -> chassis.Service:
    bus, engine = await RedisBus.connect(settings), Engine(settings)

    async def sample(task: PromptTask) -> RolloutGroup:
        await engine.load(task.policy)
        await asyncio.sleep(SAMPLE_SECONDS)
        return make_group(task=task)

    loop = StageLoop.of(settings, bus, Stage.ROLLOUT, sample)
    engine_up = resident(engine, bus, engine.cache)
    return chassis.stage_service("rollout", "cepo.v1.RolloutService", lambda server: None, loop, engine_up)


async def trainer(settings: Settings) -> chassis.Service:
    """Publishes a new policy and 16 tasks in every step, and appends one line per step to FILE, until SIGTERM."""
    bus, folder, out = await RedisBus.connect(settings), Path(mkdtemp()), Path(sys.argv[2])
    collector = Collector(bus, "link", lambda proof: None, partial(bus.publish, stream_of(Stage.ROLLOUT)))

    class Servicer(services_pb2_grpc.TrainerServiceServicer):
        async def FetchPolicy(self, request: Any, context: Any) -> AsyncIterator[services_pb2.PolicyChunk]:
            for chunk in adapters.chunks(folder / from_proto(PolicyRef, request).name):
                yield chunk

    async def one(step: int) -> None:
        files = {name: os.urandom(200_000) for name in FILES}
        policy = PolicyRef(version=step + 1, sha256=adapters.digest(files))
        adapters.write(folder / policy.name, files)
        await bus.announce(policy)
        route = (Stage.ROLLOUT, Stage.VERIFY)
        tasks = [make_task(run="link", step=step, index=i, asks=(), route=route, policy=policy) for i in range(GROUPS)]
        collector.expect(tasks)
        await bus.publish(stream_of(Stage.ROLLOUT), tasks)
        groups = await collector.take(tasks)
        row = {
            "step": step,
            "groups": [group.task.group_id for group in groups],
            "kinds": sorted({type(group).__name__ for group in groups}),
            "dropped": collected()["dropped"]._value.get(),
        }
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")

    async def work(stop: asyncio.Event) -> None:
        service.ready.set()
        step = 0
        while not stop.is_set():
            await one(step)
            step += 1
        await bus.close()

    def register(server: grpc.aio.Server) -> None:
        services_pb2_grpc.add_TrainerServiceServicer_to_server(Servicer(), server)

    service = chassis.Service("trainer", "cepo.v1.TrainerService", register, work)
    return service


if __name__ == "__main__":
    chassis.main(sys.argv[1], {"rollout": rollout, "trainer": trainer}[sys.argv[1]])
