"""Environments, sources and the curriculum through the trainer's loop, with a real learner and toy engines."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
import torch

import cepo.tiny
from cepo.messages.groups import Outcome, PolicyRef, PromptTask, RolloutGroup, Sampling, ScoredGroup, Stage, Verdict
from cepo.net.settings import Settings
from cepo.run.folder import RunDir
from cepo.service.generator import RolloutPrompt, SampledResponse
from cepo.service.stage import Handler
from cepo.teaching import handler as teacher
from cepo.testing import MemoryBus
from services.rollout import handler as rollout
from services.rollout.environments.pool import Environments
from services.trainer.__main__ import assemble
from services.trainer.loop import Run
from services.verifier.played import in_environment
from tests.helpers.factories import make_config
from tests.helpers.runs import begin_run
from tests.unit.rollout.test_environments import CALCULATOR
from tests.unit.trainer.loops import ProvenScorer, timeless, trained

torch.set_num_threads(1)
SUMS = cepo.tiny.path().parent / "data" / "train.jsonl"
SMALL = (
    f'data.train=[{{path="{SUMS}", name="tools", environment="{CALCULATOR}", share=2, limit=6}}, '
    f'{{path="{SUMS}", name="plain", limit=6}}]',
    "data.curriculum=pass_rate",
    "data.eval=''",
    "sampling.prompts=3",
    "sampling.samples=3",
    "sampling.max_tokens=60",
    "loop.steps=4",
    "loop.deterministic=true",
)


class Engines(ProvenScorer):
    """Engines whose samples, verdicts and log-probs are functions of the task."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.groups: list[RolloutGroup] = []

    async def generate(
        self, prompt: RolloutPrompt, samples: int, sampling: Sampling, seed: int, policy: PolicyRef
    ) -> list[SampledResponse]:
        draw, responses = random.Random(f"{seed}/{policy.name}"), []
        for _ in range(samples):
            text = draw.choice(["calc(1+2)", "calc(60-7)", "\\boxed{5}", "\\boxed{6}"])
            ids = (*self.renderer.tokenizer.encode(text), *self.renderer.stop_ids)[: sampling.max_tokens]
            responses.append(SampledResponse(ids, tuple(-draw.choice([1, 64]) / 32 for _ in ids), finished=True))
        return responses

    async def verify(self, group: RolloutGroup) -> ScoredGroup:
        self.groups.append(group)
        return ScoredGroup(rollout=group, verdicts=tuple(judged(group.task, c) for c in group.completions))


def judged(task: PromptTask, completion: Any) -> Verdict:
    right = completion.text.endswith("5}")
    outcome = Outcome.CORRECT if right else Outcome.WRONG
    return in_environment(task, completion, Verdict(outcome=outcome, reward=float(right), accuracy=float(right)))


@pytest_asyncio.fixture
async def environments() -> AsyncIterator[Environments]:
    async with Environments([CALCULATOR], at_once=4) as made:
        yield made


async def trained_with(
    path: Path, environments: Environments, until: int = 99
) -> tuple[list[RolloutGroup], list[dict[str, Any]]]:
    """Trains the run of a folder to its end, or up to a step; returns the sampled groups and the metrics so far."""
    folder, bus = RunDir(path), MemoryBus()
    if not folder.config.exists():
        begin_run(folder, make_config(*SMALL))
    run = assemble(folder, bus, Settings())
    engines = Engines(run)
    handlers: dict[Stage, Handler] = {
        Stage.ROLLOUT: rollout.make_handler(engines, engines.renderer, 160, environments),
        Stage.VERIFY: engines.verify,
        Stage.TEACH: teacher.make_handler(engines, engines.renderer, 300),
    }
    return engines.groups, await trained(run, bus, handlers, until)


async def test_a_run_of_several_turns_and_sources_resumes_to_the_same_bytes(
    tmp_path: Path, environments: Environments
) -> None:
    groups, whole = await trained_with(tmp_path / "run", environments)
    given = [c.given for group in groups for c in group.completions]
    assert any(len(spans) > 1 for spans in given)
    for row in whole:
        assert (row["groups/failed"], row["samples/failed"]) == (0.0, 0.0)
        sampled = sum(c.length for g in groups if g.task.step == row["step"] for c in g.completions)
        assert row["tokens/generated"] == sampled
        assert (row["source/tools/groups"], row["source/plain/groups"]) == (2.0, 1.0)
    assert any(row["grad_norm"] > 0 for row in whole)
    _, first = await trained_with(tmp_path / "again" / "run", environments, until=1)
    assert 1 <= len(first) < 4
    _, resumed = await trained_with(tmp_path / "again" / "run", environments)
    assert timeless(resumed) == timeless(whole)
    adapters = [sorted((tmp_path / at / "adapters").glob("*/*.safetensors"))[-1] for at in ("run", "again/run")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
