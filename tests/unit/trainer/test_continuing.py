"""Continuations through the trainer's loop over the in-process bus: a real learner and handlers, toy engines."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from cepo.contracts import PolicyProof, PolicyRef, PromptTask, RolloutGroup, Sampling, ScoredGroup, Stage
from cepo.rendering import Renderer
from cepo.rundir import RunDir
from cepo.settings import Settings
from cepo.stage import StageLoop
from cepo.teaching import handler as teacher
from cepo.testing import MemoryBus
from services.rollout import handler as rollout
from services.trainer.__main__ import assemble
from services.trainer.loop import Run, train
from tests.factories import make_config
from tests.unit.algo.continuing import judged

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


@dataclass
class Engines:
    """Sampling and measuring as functions of what is asked."""

    run: Run
    renderer: Renderer
    tasks: list[PromptTask] = field(default_factory=list)

    async def load(self, policy: PolicyRef) -> PolicyProof:
        expected = self.run.publisher.expected(policy)
        return PolicyProof(
            policy=policy,
            bound_modules=expected.bound_modules,
            canary_logp=expected.canary_logp,
            tokenizer_sha256=self.renderer.sha256,
            engine="toy",
        )

    async def generate(
        self, prompt_ids: Sequence[int], samples: int, sampling: Sampling, seed: int, policy: PolicyRef
    ) -> list[rollout.Sample]:
        draw, words = random.Random(f"{seed}/{policy.name}"), self.renderer.tokenizer("1 2+3\n=\n")["input_ids"]
        found = []
        for _ in range(samples):
            length = draw.randrange(1, sampling.max_tokens + 1)
            ids = tuple(draw.choice(words) for _ in range(length))
            found.append(rollout.Sample(ids, tuple(-draw.choice([1, 64]) / 32 for _ in ids), length % 2 == 0))
        return found

    async def verify(self, group: RolloutGroup) -> ScoredGroup:
        self.tasks.append(group.task)
        return ScoredGroup(rollout=group, verdicts=tuple(judged(c.token_ids) for c in group.completions))

    async def score(self, pairs: Sequence[teacher.Pair], temperature: float, policy: PolicyRef) -> list[teacher.Logps]:
        return [(-2.0,) * len(pair.response_ids) for pair in pairs]

    def close(self) -> None: ...


@asynccontextmanager
async def stages(bus: MemoryBus, engines: Engines) -> Any:
    """The stages at work until the block ends."""
    stop = asyncio.Event()
    handlers = {
        Stage.ROLLOUT: rollout.make_handler(engines, engines.renderer, 160),
        Stage.VERIFY: engines.verify,
        Stage.TEACH: teacher.make_handler(engines, engines.renderer, 200),  # type: ignore[arg-type]
    }
    async with asyncio.TaskGroup() as group:
        for stage, handler in handlers.items():
            group.create_task(StageLoop(bus, stage, handler).run(stop))
        yield
        stop.set()


async def trained(path: Path, *overrides: str, until: int = 99) -> tuple[Engines, list[dict[str, Any]]]:
    """Trains the run of a folder to its end, or up to a step; what was sampled, and its metrics so far."""
    folder, bus = RunDir(path), MemoryBus()
    if not folder.config.exists():
        folder.create(make_config(*SMALL, *overrides), resume=False)
    run = assemble(folder, bus, Settings())  # type: ignore[arg-type]
    engines, stop = Engines(run, Renderer(run.config.model.path)), asyncio.Event()

    async def watch() -> None:
        while run.status.step < until:
            await asyncio.sleep(0.005)
        stop.set()

    watching = asyncio.create_task(watch())
    async with asyncio.timeout(60), stages(bus, engines):
        await train(run, stop)
    watching.cancel()
    return engines, [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if "second" not in key and key != "time"} for row in rows]


@pytest.mark.parametrize("name", METHODS)
async def test_a_run_with_continuations_goes_on_to_the_same_numbers_after_a_stop(tmp_path: Path, name: str) -> None:
    engines, whole = await trained(tmp_path / "run", f"algorithm={METHODS[name]}")
    follow_ups = [task for task in engines.tasks if task.origin is not None]
    assert {task.step for task in follow_ups} == {0, 1, 2}
    assert len({task.group_id for task in engines.tasks}) == len(engines.tasks)
    for row in whole:
        assert row["groups/failed"] == 0.0
        assert row["groups/total"] == sum(task.step == row["step"] for task in engines.tasks)
        assert 0 < row["tokens/continued"] < row["tokens/generated"]
        assert all(value == value for value in row.values())
    assert any(row["grad_norm"] > 0 for row in whole)
    _, first = await trained(tmp_path / "again" / "run", f"algorithm={METHODS[name]}", until=1)
    assert len(first) < 3
    resumed_engines, resumed = await trained(tmp_path / "again" / "run")
    assert timeless(resumed) == timeless(whole)
    assert {task.step for task in resumed_engines.tasks} == set(range(len(first), 3))
    adapters = [sorted((tmp_path / at / "adapters").glob("*/*.safetensors"))[-1] for at in ("run", "again/run")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
