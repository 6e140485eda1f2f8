"""The loop over steps with the real learner, publisher and teacher; sampling and grading are functions of the test."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import (
    Completion,
    EvidencedGroup,
    FinishReason,
    PolicyRef,
    PromptTask,
    RolloutGroup,
    ScoredGroup,
    Stage,
)
from cepo.net.settings import Settings
from cepo.prompts.renderer import Renderer
from cepo.run.folder import RunDir
from cepo.service import adapters
from cepo.service.adapters import AdapterCache
from cepo.service.stage import StageLoop
from cepo.teaching.engine import TransformersScorer
from cepo.teaching.handler import make_handler
from cepo.testing import MemoryBus
from services.trainer.__main__ import assemble
from services.trainer.loop import Run, train
from tests.helpers.factories import make_config, make_verdict
from tests.helpers.runs import begin_run

torch.set_num_threads(1)
Unbroken = Callable[[str], Awaitable[tuple[Path, list[EvidencedGroup]]]]
SMALL = ("loop.steps=4", "sampling.prompts=2", "sampling.samples=3", "data.eval=", "lora.rank=2")
RENDERER = Renderer(make_config().model.path)
SOURCES = {
    "ema": ("algorithm.teacher.source=ema", "algorithm.teacher.ema_rate=0.25", "algorithm.negative=peer_full"),
    "sync": ("algorithm.teacher.source=sync", "algorithm.teacher.sync_every=2", "data.placement=assistant"),
    "behind": ("algorithm.teacher.source=sync", "algorithm.teacher.sync_every=2", "loop.lag=1"),
}


class Stages:
    """The three stages in one process."""

    def __init__(self, run: Run, folder: Path) -> None:
        async def fetch(policy: PolicyRef) -> dict[str, bytes]:
            return adapters.read(run.publisher.folder(policy))

        model = run.config.model.path
        self.engine = TransformersScorer(
            Settings(model=model, dtype="float32", max_loras=3, concurrency=1),
            RENDERER,
            AdapterCache(folder, fetch, keep=5),
        )
        self.teach = make_handler(self.engine, RENDERER, 400)
        self.taught: list[EvidencedGroup] = []
        self.graded = 0

    async def sample(self, task: PromptTask) -> RolloutGroup:
        """Returns one correct and two wrong responses whose text depends on the seed."""
        rng, completions = random.Random(task.seed), []
        for answer in (task.reference_answer, "1000", "2000"):
            text = f"{rng.randrange(99)}+{rng.randrange(99)}, \\boxed{{{answer}}}"
            ids = RENDERER.tokenizer.encode(text, add_special_tokens=False)
            completions.append(
                Completion(
                    token_ids=ids, logps=Float32Array.of((-1.0,) * len(ids)), text=text, finish_reason=FinishReason.STOP
                )
            )
        prompt_ids, proof = RENDERER.prompt_ids(task.messages), await self.engine.load(task.policy)
        return RolloutGroup(
            task=task, prompt_token_ids=Int32Array.of(prompt_ids), completions=tuple(completions), proof=proof
        )

    async def grade(self, group: RolloutGroup) -> ScoredGroup:
        self.graded += 1
        wrong = [make_verdict(0.0, answer) for answer in ("1000", "2000")]
        return ScoredGroup(rollout=group, verdicts=(make_verdict(1.0, group.task.reference_answer), *wrong))

    async def measure(self, group: ScoredGroup) -> EvidencedGroup:
        self.taught.append(await self.teach(group))
        return self.taught[-1]


async def resumed(folder: Path, *overrides: str, drain_after: int | None = None) -> list[EvidencedGroup]:
    """Starts or resumes a run; `drain_after` is the number of graded groups after which it is drained."""
    run_dir, bus = RunDir(folder), MemoryBus()
    begin_run(run_dir, make_config(*SMALL, *overrides), resume=run_dir.config.is_file())
    run: Any = assemble(run_dir, bus, Settings(threads=1, adapter_cache=folder / "own"))
    stages, drain, stop = Stages(run, folder / "cache"), asyncio.Event(), asyncio.Event()

    async def grade(group: RolloutGroup) -> ScoredGroup:
        scored = await stages.grade(group)
        if drain_after is not None and stages.graded >= drain_after:
            drain.set()
        return scored

    handlers: dict[Stage, Any] = {Stage.ROLLOUT: stages.sample, Stage.VERIFY: grade}
    if run.config.engine.teacher == "service":
        handlers[Stage.TEACH] = stages.measure
    async with asyncio.TaskGroup() as group:
        for stage, handler in handlers.items():
            group.create_task(StageLoop(bus, stage, handler).run(stop))
        async with run.beside:
            await train(run, drain)
        stop.set()
    stages.engine.close()
    return stages.taught


def written(folder: Path) -> dict[str, str]:
    """The digest of every adapter of a run, by its folder."""
    return {path.name: adapters.digest(adapters.read(path)) for path in sorted((folder / "adapters").iterdir())}


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """Trains a run without interruption, once per teacher source; returns its folder and the scored groups."""
    made: dict[str, tuple[Path, list[EvidencedGroup]]] = {}

    async def run(source: str) -> tuple[Path, list[EvidencedGroup]]:
        if source not in made:
            folder = tmp_path_factory.mktemp(source) / "run"
            made[source] = folder, await resumed(folder, *SOURCES[source])
        return made[source]

    return run


@pytest.mark.parametrize("source", SOURCES)
async def test_a_run_that_stopped_and_went_on_had_the_teachers_of_one_that_did_not(
    unbroken: Unbroken, tmp_path: Path, source: str
) -> None:
    whole, taught = await unbroken(source)
    broken = tmp_path / "run"
    first = await resumed(broken, *SOURCES[source], drain_after=3)
    assert 0 < len(metrics(broken)) < 4
    second = await resumed(broken, *SOURCES[source])
    assert written(broken) == written(whole)
    assert metrics(broken) == metrics(whole)
    teachers = {group.task.group_id: group.task.teacher for group in taught}
    assert {group.task.group_id: group.task.teacher for group in (*first, *second)} == teachers

    versions = {group.task.step: group.task.teacher.version for group in taught}
    assert (
        versions
        == {
            "ema": {0: 0, 1: 1, 2: 2, 3: 3},
            "sync": {0: 0, 1: 0, 2: 2, 3: 2},  # a copy only after the update of step 2
            "behind": {0: 0, 1: 0, 2: 0, 3: 2},
        }[source]
    )
    averages = [name for name in written(whole) if name.startswith("ema-")]
    assert averages == ([f"ema-v{version:06d}" for version in range(1, 5)] if source == "ema" else [])
    assert all(row["groups/failed"] == 0 for row in metrics(whole))
    assert sum(row["credit/tokens"] for row in metrics(whole)) > 0
    (note,) = RunDir(whole).notes()
    assert note.startswith("rollout/logp_gap is "), "the stage that samples makes its log-probs up"
    assert " nats a token at step 0, above 0.001 in float32: " in note


@pytest.mark.parametrize("source", ["ema", "behind"])
async def test_a_teacher_on_the_learners_own_base_gives_the_run_of_one_with_a_base_of_its_own(
    unbroken: Unbroken, tmp_path: Path, source: str
) -> None:
    (apart, taught), colocated = await unbroken(source), tmp_path / "run"
    assert taught
    for drain_after in (3, None):
        assert not await resumed(colocated, *SOURCES[source], "engine.teacher=colocated", drain_after=drain_after)
    assert written(colocated) == written(apart)
    assert metrics(colocated) == metrics(apart)
    assert sum(row["credit/tokens"] for row in metrics(colocated)) > 0
