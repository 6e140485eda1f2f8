"""Continuations through the trainer's loop over the in-process bus, with a real learner and toy engines."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from cepo.messages.groups import PolicyRef, PromptTask, RolloutGroup, Sampling, ScoredGroup, Stage
from cepo.net.settings import Settings
from cepo.run.folder import RunDir
from cepo.service.generator import RolloutPrompt, SampledResponse
from cepo.service.stage import Handler
from cepo.teaching import handler as teacher
from cepo.testing import MemoryBus
from services.rollout import handler as rollout
from services.trainer.__main__ import assemble
from services.trainer.loop import Run
from tests.helpers.factories import make_config
from tests.helpers.runs import begin_run
from tests.unit.algo.continuing import judged
from tests.unit.trainer.loops import ProvenScorer, timeless, trained

torch.set_num_threads(1)
SMALL = (
    "sampling.prompts=2",
    "sampling.samples=3",
    "sampling.max_tokens=12",
    "data.eval=''",
    "data.limit=8",
    "loop.steps=3",
    "loop.deterministic=true",
)
METHODS = {
    "vineppo": '{name="vineppo", continuations=4, kl_coef=0.01}',
    "spo-chain": '{name="spo-chain", continuations=4, interval=2}',
    "spo-tree": '{name="spo-tree", branching=[2, 2], segment_tokens=3}',
}


class Engines(ProvenScorer):
    """Engines whose samples and log-probs are functions of the task."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.tasks: list[PromptTask] = []

    async def generate(
        self, prompt: RolloutPrompt, samples: int, sampling: Sampling, seed: int, policy: PolicyRef
    ) -> list[SampledResponse]:
        draw, words = random.Random(f"{seed}/{policy.name}"), self.renderer.tokenizer("1 2+3\n=\n")["input_ids"]
        responses = []
        for _ in range(samples):
            length = draw.randrange(1, sampling.max_tokens + 1)
            ids = tuple(draw.choice(words) for _ in range(length))
            responses.append(SampledResponse(ids, tuple(-draw.choice([1, 64]) / 32 for _ in ids), length % 2 == 0))
        return responses

    async def verify(self, group: RolloutGroup) -> ScoredGroup:
        self.tasks.append(group.task)
        return ScoredGroup(rollout=group, verdicts=tuple(judged(c.token_ids) for c in group.completions))


async def trained_with(path: Path, *overrides: str, until: int = 99) -> tuple[Engines, list[dict[str, Any]]]:
    """Trains the run of a folder to its end, or up to a step; returns the sampled tasks and the metrics so far."""
    folder, bus = RunDir(path), MemoryBus()
    if not folder.config.exists():
        begin_run(folder, make_config(*SMALL, *overrides))
    run = assemble(folder, bus, Settings())
    engines = Engines(run)
    handlers: dict[Stage, Handler] = {
        Stage.ROLLOUT: rollout.make_handler(engines, engines.renderer, 160),
        Stage.VERIFY: engines.verify,
        Stage.TEACH: teacher.make_handler(engines, engines.renderer, 200),
    }
    return engines, await trained(run, bus, handlers, until)


@pytest.mark.parametrize("name", METHODS)
async def test_a_run_with_continuations_resumes_to_the_same_numbers_after_a_stop(tmp_path: Path, name: str) -> None:
    engines, whole = await trained_with(tmp_path / "run", f"algorithm={METHODS[name]}")
    follow_ups = [task for task in engines.tasks if task.origin is not None]
    assert {task.step for task in follow_ups} == {0, 1, 2}
    assert len({task.group_id for task in engines.tasks}) == len(engines.tasks)
    for row in whole:
        assert row["groups/failed"] == 0.0
        assert row["groups/total"] == sum(task.step == row["step"] for task in engines.tasks)
        assert 0 < row["tokens/continued"] < row["tokens/generated"]
        assert all(value == value for value in row.values())
    assert any(row["grad_norm"] > 0 for row in whole)
    _, first = await trained_with(tmp_path / "again" / "run", f"algorithm={METHODS[name]}", until=1)
    assert len(first) < 3
    resumed_engines, resumed = await trained_with(tmp_path / "again" / "run")
    assert timeless(resumed) == timeless(whole)
    assert {task.step for task in resumed_engines.tasks} == set(range(len(first), 3))
    adapters = [sorted((tmp_path / at / "adapters").glob("*/*.safetensors"))[-1] for at in ("run", "again/run")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
