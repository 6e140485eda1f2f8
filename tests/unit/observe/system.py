"""A whole run in this process: the trainer's loop on the tiny model, real stages, and an engine without a GPU."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cepo.messages.arrays import Float32Array
from cepo.messages.groups import EvidencedGroup, PolicyProof, PolicyRef, Sampling, ScoredGroup, Stage
from cepo.net.settings import Settings
from cepo.prompts.renderer import Renderer
from cepo.run.folder import RunDir
from cepo.service import adapters
from cepo.service.adapters import AdapterCache, resident
from cepo.service.generator import RolloutPrompt, SampledResponse
from cepo.service.stage import Handler, StageLoop
from cepo.teaching.engine import TransformersScorer
from cepo.teaching.handler import Pair, make_handler as teacher
from cepo.testing import MemoryBus, ToyGenerator
from services.rollout.handler import make_handler as rollout
from services.trainer.__main__ import assemble
from services.trainer.loop import Run, train
from services.verifier.handler import Verifier
from services.verifier.pool import GraderPool
from tests.helpers.factories import make_config
from tests.helpers.runs import begin_run

SMALL = ("loop.steps=2", "sampling.prompts=2", "sampling.samples=4", "eval.prompts=2", "eval.every=1")


@dataclass(frozen=True)
class Fault:
    """The fault of a run."""

    logp_shift: float = 0.0
    """Added to the engine's log-probs."""
    canary_shift: float = 0.0
    """Added to the canary's log-prob, as if the engine had loaded other weights."""
    teacher_seconds: float = 0.0
    """Seconds by which the teacher is slower per group."""
    always_wrong: bool = False


class SumGenerator(ToyGenerator):
    """Answers sums, every second one wrongly, with the log-probs and proofs of the policy that it samples with.

    It is the engine of a faulty run: `fault` shifts its log-probs and its canary.
    """

    def __init__(self, scorer: TransformersScorer, renderer: Renderer, fault: Fault) -> None:
        super().__init__(renderer.tokenizer.encode, ())
        self._scorer = scorer
        self._tokenizer: Any = renderer.tokenizer
        self._fault = fault

    async def load(self, policy: PolicyRef) -> PolicyProof:
        proof = await self._scorer.load(policy)
        shifted = Float32Array.of([logp + self._fault.canary_shift for logp in proof.canary_logps])
        return proof.model_copy(update={"canary_logps": shifted})

    async def generate(
        self, prompt: RolloutPrompt, samples: int, sampling: Sampling, seed: int, policy: PolicyRef
    ) -> list[SampledResponse]:
        question = re.search(r"([-+ \d]+) = \?", self._tokenizer.decode(list(prompt.ids)))
        assert question is not None
        total = sum(int(term) for term in re.findall(r"[-+]?\d+", question[1].replace(" ", "")))
        answers = [f"\\boxed{{{total + (i % 2 or self._fault.always_wrong)}}}" for i in range(samples)]
        pairs = [Pair(prompt.ids, tuple(self._tokenizer.encode(text))) for text in answers]
        scored = await self._scorer.score(pairs, sampling.temperature, policy)
        return [
            SampledResponse(pair.response_ids, tuple(logp + self._fault.logp_shift for logp in logps), True)
            for pair, logps in zip(pairs, scored.values, strict=True)
        ]


async def complete(folder: Path, fault: Fault = Fault()) -> Run:
    """A run of two steps, from its folder to its last checkpoint.

    Raises:
        ExceptionGroup: the run cannot continue.
    """
    config, run_dir, bus = make_config(*SMALL), RunDir(folder), MemoryBus()
    begin_run(run_dir, config)
    settings = Settings(model=config.model.path, dtype="float32", max_model_len=512, threads=1)
    run = assemble(run_dir, bus, settings)
    renderer = Renderer(config.model.path)

    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        return adapters.read(run.publisher.folder(policy))

    cache = AdapterCache(folder / "cache", fetch, keep=4)
    scorer = TransformersScorer(settings, renderer, cache)
    measure = teacher(scorer, renderer, settings.max_model_len)

    async def slow(group: ScoredGroup) -> EvidencedGroup:
        await asyncio.sleep(fault.teacher_seconds)
        return await measure(group)

    handlers: dict[Stage, Handler] = {
        Stage.ROLLOUT: rollout(SumGenerator(scorer, renderer, fault), renderer, settings.max_model_len),
        Stage.VERIFY: Verifier(GraderPool(1)).verify,  # plain numbers are graded in this process
        Stage.TEACH: slow,
    }
    stop = asyncio.Event()
    async with asyncio.timeout(200), AsyncExitStack() as stack:
        await stack.enter_async_context(resident(scorer, bus, cache))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        for stage, handler in handlers.items():
            group.create_task(StageLoop(bus, stage, handler).run(stop))
        try:
            await train(run, asyncio.Event())
        finally:
            stop.set()
    return run
