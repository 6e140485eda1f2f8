"""A system with simulated engines: Redis, bus, stage loops and collector are real, and groups have the real size.

A simulated engine sleeps and returns prepared results; everything other than the engines runs as in production. Workers
are stage loops with consumer names and connections of their own, several to a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.synchronize import Barrier
from typing import Any

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import (
    BASE_POLICY,
    Ask,
    Completion,
    ContextName,
    Evidence,
    EvidencedGroup,
    EvidenceReason,
    EvidenceRow,
    FinishReason,
    Message,
    Outcome,
    PolicyProof,
    PromptTask,
    Purpose,
    RolloutGroup,
    Sampling,
    ScoredGroup,
    Stage,
    Verdict,
)
from cepo.run import embedded
from cepo.run.deployment import REDIS_OPTIONS
from cepo.service.bus import RedisBus, stream_of
from cepo.service.stage import StageLoop
from services.trainer.collector import Collector

ROUTE = (Stage.ROLLOUT, Stage.VERIFY, Stage.TEACH)
ASKS = (Ask(context=ContextName.ANSWER), Ask(context=ContextName.REJECTED, exclude_self=True))
PROOF = PolicyProof(policy=BASE_POLICY, bound_modules=0, canary_logp=-1.0, tokenizer_sha256="", engine="simulated")
VOCABULARY = 151_936
PROMPT_TOKENS = 256
START_SECONDS = 60.0
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Shape:
    """The size of a group."""

    samples: int = 8
    tokens: int = 2048

    def tasks(self, run: str, count: int) -> list[PromptTask]:
        """Training tasks of one step."""
        return [
            PromptTask(
                run=run,
                step=0,
                index=index,
                purpose=Purpose.TRAIN,
                messages=(Message(role="user", content="What is the sum? " * 20),),
                reference_answer="7",
                hint="The answer is {answer}.",
                samples=self.samples,
                sampling=Sampling(max_tokens=self.tokens),
                seed=index,
                asks=ASKS,
                route=ROUTE,
            )
            for index in range(count)
        ]


@dataclass(frozen=True)
class Workers:
    """Workers of one stage in one process; each holds up to `slots` groups for `seconds`."""

    stage: Stage
    shape: Shape
    count: int = 1
    slots: int = 64
    seconds: float = 0.0

    def handler(self) -> Callable[[Any], Awaitable[Any]]:
        """The simulated handler of the stage."""
        builders: dict[Stage, Callable[[Shape], Callable[[Any], Any]]] = {
            Stage.ROLLOUT: _sampled,
            Stage.VERIFY: _judged,
            Stage.TEACH: _scored,
        }
        build = builders[self.stage](self.shape)

        async def work(message: Any) -> Any:
            await asyncio.sleep(self.seconds)
            return build(message)

        return work


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Starts a Redis with an append-only file, as deployed, and yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        options = f"--bind 127.0.0.1 --port {port} --dir {folder} --loglevel warning"
        command = [str(embedded.program()), *options.split(), *REDIS_OPTIONS]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with Redis(port=port) as client:
                _await(client)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.kill()
            server.wait()


@contextlib.contextmanager
def running(url: str, fleet: list[Workers]) -> Iterator[None]:
    """Starts a process for each entry of `fleet` and waits until all workers receive groups."""
    up = _SPAWN.Barrier(len(fleet) + 1)
    processes = [_SPAWN.Process(target=_serve, args=(url, workers, up), daemon=True) for workers in fleet]
    for process in processes:
        process.start()
    try:
        up.wait(START_SECONDS)
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(10)


@dataclass(frozen=True)
class Cost:
    """The cost of moving a number of groups."""

    seconds: float
    redis_cpu_seconds: float
    redis_bytes: int
    """Bytes received and sent by Redis."""
    trainer_cpu_seconds: float
    """CPU time of publishing and collecting."""


async def collect(url: str, tasks: list[PromptTask]) -> Cost:
    """Publishes tasks as the feeder does and takes their groups as the trainer does."""
    bus = RedisBus(url)
    rollout = stream_of(Stage.ROLLOUT)
    collector = Collector(bus, tasks[0].run, lambda proof: None, partial(bus.publish, rollout))
    with Redis.from_url(url) as client:
        before, begun, busy = client.info(), time.perf_counter(), time.process_time()
        collector.expect(tasks)
        await bus.publish(rollout, tasks)
        groups = await collector.take(tasks)
        seconds, busy = time.perf_counter() - begun, time.process_time() - busy
        after = client.info()
    await bus.close()
    assert all(isinstance(group, EvidencedGroup) for group in groups), "a group failed"
    cpu, traffic = ("used_cpu_user", "used_cpu_sys"), ("total_net_input_bytes", "total_net_output_bytes")
    return Cost(
        seconds=seconds,
        redis_cpu_seconds=sum(after[key] - before[key] for key in cpu),
        redis_bytes=sum(after[key] - before[key] for key in traffic),
        trainer_cpu_seconds=busy,
    )


def _serve(url: str, workers: Workers, up: Barrier) -> None:
    async def run() -> None:
        stop = asyncio.Event()
        handlers = [workers.handler() for _ in range(workers.count)]
        up.wait(START_SECONDS)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with asyncio.TaskGroup() as group:
            for number, handler in enumerate(handlers):
                loop = StageLoop(RedisBus(url), workers.stage, handler, concurrency=workers.slots)
                loop.consumer += f"-{number}"
                group.create_task(loop.run(stop))

    asyncio.run(run())


def _sampled(shape: Shape) -> Callable[[PromptTask], RolloutGroup]:
    rng = random.Random(0)
    prompt: Any = tuple(rng.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS))
    completions = tuple(
        Completion(
            token_ids=Int32Array.of(rng.randrange(VOCABULARY) for _ in range(shape.tokens)),
            logps=_logps(rng, shape.tokens),
            text="word " * shape.tokens,
            finish_reason=FinishReason.STOP,
        )
        for _ in range(shape.samples)
    )
    return lambda task: RolloutGroup(task=task, prompt_token_ids=prompt, completions=completions, proof=PROOF)


def _judged(shape: Shape) -> Callable[[RolloutGroup], ScoredGroup]:
    right = Verdict(outcome=Outcome.CORRECT, reward=1.0, accuracy=1.0, extracted="7", normalised="7")
    wrong = Verdict(outcome=Outcome.WRONG, reward=0.0, accuracy=0.0, extracted="5", normalised="5")
    verdicts = tuple(wrong if i % 2 else right for i in range(shape.samples))
    return lambda group: ScoredGroup(rollout=group, verdicts=verdicts)


def _scored(shape: Shape) -> Callable[[ScoredGroup], EvidencedGroup]:
    rng = random.Random(1)
    rows = tuple(
        EvidenceRow(
            logps=_logps(rng, shape.tokens),
            applicable=True,
            context=ContextName.ANSWER,
            reason=EvidenceReason.ASKED,
            answer="7",
        )
        for _ in range(shape.samples)
    )
    evidence = tuple(Evidence(ask=ask, rows=rows) for ask in ASKS)
    return lambda group: EvidencedGroup(scored=group, evidence=evidence, proofs=(PROOF,))


def _logps(rng: random.Random, tokens: int) -> Float32Array:
    return Float32Array.of(-rng.random() for _ in range(tokens))


def _await(client: Redis) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(RedisConnectionError):
            client.ping()
            return
        time.sleep(0.02)
    raise TimeoutError("Redis does not come up")
