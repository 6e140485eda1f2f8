"""Samples and grades the held-out problems with any policy of a run, on a stack without trainer and teacher.

This process takes the place of the trainer: it publishes the evaluation tasks, serves the adapters that the tasks name
and collects the groups.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from cepo.cli.evaluation.scores import MeasuredPolicy
from cepo.data.problems import Problems
from cepo.errors import UserError
from cepo.messages.groups import BASE_POLICY, GroupFailed, PolicyProof, PolicyRef
from cepo.net.auth import TokenInterceptor, Tokens
from cepo.net.connections import GRPC_OPTIONS, listen
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2, services_pb2_grpc
from cepo.prompts.images import ImageStore
from cepo.run.local import Stack
from cepo.service import adapters
from cepo.service.bus import Bus, RedisBus
from cepo.service.image_cache import serve_images

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

WATCH_SECONDS = 0.25

OnProblemDone = Callable[[PolicyRef], None]


@dataclass(frozen=True)
class Plan:
    """The problems and policies of one evaluation."""

    config: RunConfig
    """Its `eval` section holds the sampling settings."""
    problems: Problems
    folders: Mapping[PolicyRef, Path]
    """The adapter folder of each policy, in the order of measuring; the path of the base is not read."""
    tokenizer_sha256: str
    images: Path
    """The folder of the problems' images."""


async def measure(plan: Plan, stack: Stack, on_problem_done: OnProblemDone) -> AsyncIterator[MeasuredPolicy]:
    """Measures on a started stack; yields each policy when its problems are done.

    Raises:
        UserError: a process rejected its input, or every group of a policy failed.
        ServiceDown: a process keeps dying.
    """
    bus = RedisBus(stack.redis_url, certificates=Settings.from_environment().certificates)
    try:
        async with serving(plan, stack.grpc["trainer"]):
            policies = measure_on_bus(plan, bus, on_problem_done)
            while True:
                measured = await _while_alive(stack, anext(policies, None))
                if measured is None:
                    return
                yield measured
    finally:
        await bus.close()


async def measure_on_bus(plan: Plan, bus: Bus, on_problem_done: OnProblemDone) -> AsyncGenerator[MeasuredPolicy]:
    """Measures with the workers of a bus; yields each policy when its problems are done.

    Raises:
        UserError: every group of a policy failed.
    """
    from services.trainer.collector import Collector
    from services.trainer.feeder import Feeder

    run = f"{plan.config.name}-{uuid.uuid4().hex[:8]}"
    evaluation = plan.config.eval.model_copy(update={"prompts": len(plan.problems.problems)})
    config = plan.config.model_copy(update={"eval": evaluation})
    feeder = Feeder(config, run, plan.problems, plan.problems, bus)
    collector = Collector(bus, run, lambda proof: _refusal(proof, plan.tokenizer_sha256), feeder.publish)
    for policy in plan.folders:
        begin = time.perf_counter()
        tasks = feeder.eval_tasks(policy.version, policy)
        collector.expect(tasks)
        await feeder.publish(tasks)
        groups = []
        for task in tasks:
            groups += await collector.take([task])
            on_problem_done(policy)
        failed = [group for group in groups if isinstance(group, GroupFailed)]
        if len(failed) == len(groups):
            raise UserError(f"every group of {policy.name} failed, the first because: {failed[0].error}")
        yield MeasuredPolicy(policy, plan.problems.problems, tuple(groups), time.perf_counter() - begin)


def _refusal(proof: PolicyProof, tokenizer_sha256: str) -> str | None:
    if proof.tokenizer_sha256 != tokenizer_sha256:
        return f"{proof.engine} has another tokenizer or chat template than model.path"
    return None


@asynccontextmanager
async def serving(plan: Plan, address: str) -> AsyncIterator[None]:
    """Serves the policies of an evaluation to the engines, in the trainer's place."""

    class EvaluationServicer(services_pb2_grpc.TrainerServiceServicer):
        async def FetchPolicy(self, request: Any, context: Any) -> AsyncIterator[services_pb2.PolicyChunk]:
            policy = PolicyRef(version=request.version, sha256=request.sha256)
            if policy not in plan.folders or policy == BASE_POLICY:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"{policy.name} is not being evaluated")
            for chunk in adapters.chunks(plan.folders[policy]):
                yield chunk

        FetchImage = staticmethod(serve_images(ImageStore(plan.images)))

    settings = Settings.from_environment("trainer")
    server = grpc.aio.server(interceptors=[TokenInterceptor(Tokens.of(settings))], options=GRPC_OPTIONS)
    services_pb2_grpc.add_TrainerServiceServicer_to_server(EvaluationServicer(), server)
    listen(server, address, settings)
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


async def _while_alive(stack: Stack, work: Any) -> Any:
    """Awaits `work` while the stack is alive; raises the error of a process that cannot be restarted."""

    async def watch() -> None:
        while True:
            stack.check()
            await asyncio.sleep(WATCH_SECONDS)

    watching, working = asyncio.ensure_future(watch()), asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        watching.cancel()
        working.cancel()
