"""Follow-up tasks through the trainer's loop over the in-process bus, with a real learner and toy engines."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from cepo.errors import UserError
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import Completion, FinishReason, PolicyRef, PromptTask, RolloutGroup, ScoredGroup, Stage
from cepo.net.settings import Settings
from cepo.run.folder import RunDir
from cepo.service import adapters
from cepo.service.stage import Handler
from cepo.teaching.engine import TransformersScorer
from cepo.teaching.handler import make_handler
from cepo.testing import MemoryBus
from services.trainer.__main__ import assemble
from services.trainer.loop import Run
from tests.helpers.factories import make_config, make_verdict
from tests.helpers.runs import begin_run
from tests.unit.trainer.loops import ProvenScorer, timeless, trained

torch.set_num_threads(1)
HDPO = 'algorithm={name="hdpo", positive="answer", privileged_samples=4, top=6, weight=1.0}'
SDPO = 'algorithm={name="sdpo", positive="answer", apply_to="all", top=6}'
NEAR = SDPO.replace("}", ', teacher={source="trust_region", actor_share=0.25}}')
OPSD = 'algorithm={name="opsd", positive="answer", support="full"}'
SMALL = ("sampling.prompts=4", "sampling.samples=2", "sampling.max_tokens=12", "data.eval=''", "data.limit=8")
HINT = "Here is a sample answer: "


class Toys(ProvenScorer):
    """Engines that sample and measure as a function of the task; every prompt of an odd index is a cliff."""

    def __init__(self, run: Run, broken: frozenset[int]) -> None:
        """`broken` holds the prompts whose privileged tasks fail."""
        super().__init__(run)
        self.broken = broken
        self.tasks: list[PromptTask] = []

    async def sample(self, task: PromptTask) -> RolloutGroup:
        self.tasks.append(task)
        if task.origin is not None and task.origin.index in self.broken:
            raise UserError("it cannot be sampled")
        rng = random.Random(f"{task.seed}-{task.policy.name}-{task.messages[-1].content}")
        return RolloutGroup(
            task=task,
            prompt_token_ids=Int32Array.of(self.renderer.prompt_ids(task.messages)),
            completions=tuple(completion(rng) for _ in range(task.samples)),
            proof=await self.load(task.policy),
        )

    async def verify(self, group: RolloutGroup) -> ScoredGroup:
        cliff = group.task.origin is None and group.task.index % 2 == 1
        verdicts = tuple(make_verdict(float(not cliff and i % 2 == 0)) for i in range(group.task.samples))
        return ScoredGroup(rollout=group, verdicts=verdicts)


def completion(rng: random.Random) -> Completion:
    ids = tuple(rng.randrange(3, 500) for _ in range(rng.randrange(2, 9)))
    return Completion(
        token_ids=Int32Array.of(ids),
        logps=Float32Array.of((-5.0,) * len(ids)),
        text="",
        finish_reason=FinishReason.STOP,
    )


async def trained_with(
    path: Path, *overrides: str, broken: frozenset[int] = frozenset(), until: int = 99, real: bool = False
) -> tuple[Toys, list[dict[str, Any]]]:
    """Trains the run of a folder to its end, or up to a step; returns the sampled tasks and the metrics so far.

    Args:
        real: scores with the teacher service's engine instead of the toy engine.
    """
    folder, bus = RunDir(path), MemoryBus()
    if not folder.config.exists():
        begin_run(folder, make_config(*SMALL, "loop.steps=3", "loop.deterministic=true", *overrides))
    run = assemble(folder, bus, Settings())
    toys = Toys(run, broken)
    teach = make_handler(real_teacher(toys, path) if real else toys, toys.renderer, 200)
    handlers: dict[Stage, Handler] = {Stage.ROLLOUT: toys.sample, Stage.VERIFY: toys.verify, Stage.TEACH: teach}
    return toys, await trained(run, bus, handlers, until)


def real_teacher(toys: Toys, path: Path) -> TransformersScorer:
    """Returns the teacher service's engine, which loads the published adapters."""

    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        return adapters.read(toys.run.publisher.folder(policy))

    settings = Settings(model=toys.run.config.model.path, dtype="float32")
    return TransformersScorer(settings, toys.renderer, adapters.AdapterCache(path / "cache", fetch, keep=4))


async def test_cliffs_are_asked_again_and_what_is_right_then_is_distilled(tmp_path: Path) -> None:
    toys, rows = await trained_with(tmp_path / "run", HDPO)
    privileged = [task for task in toys.tasks if task.origin is not None]
    assert [(t.step, t.index, t.origin.index) for t in sorted(privileged, key=lambda t: (t.step, t.index))] == [
        (step, 4 + index, index) for step in range(3) for index in (1, 3)
    ]
    assert all(HINT in task.messages[-1].content for task in privileged)
    assert not any(HINT in task.messages[-1].content for task in toys.tasks if task.origin is None)
    for row in rows:
        assert row["hdpo/cliff_fraction"] == row["hdpo/privileged_success"] == row["groups/all_wrong"] == 0.5
        assert row["hdpo/kept_tokens"] > 0
        assert row["distill/divergence"] > 0
        assert 0 < row["distill/student_mass"] < 1
        assert row["distill/teacher_mass"] + row["distill/tail_mass"] == pytest.approx(1.0, abs=1e-5)
        assert (row["accuracy/train"], row["groups/total"], row["groups/failed"]) == (0.25, 6.0, 0.0)
        assert all(value == value for value in row.values())
    assert len({row["distill/divergence"] for row in rows}) == 3


async def test_a_run_that_was_stopped_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    _, whole = await trained_with(tmp_path / "run", HDPO)
    _, first = await trained_with(tmp_path / "again" / "run", HDPO, until=1)
    assert len(first) == 2
    toys, resumed = await trained_with(tmp_path / "again" / "run")
    assert timeless(resumed) == timeless(whole)
    assert {task.step for task in toys.tasks} == {2}
    last = [
        sorted((folder / "run" / "adapters").glob("*/*.safetensors"))[-1] for folder in (tmp_path, tmp_path / "again")
    ]
    assert last[0].read_bytes() == last[1].read_bytes()


async def test_a_follow_up_that_fails_does_not_fail_the_step_and_is_not_asked_again(tmp_path: Path) -> None:
    toys, rows = await trained_with(tmp_path / "run", HDPO, "loop.steps=1", broken=frozenset({3}))
    assert (rows[0]["groups/failed"], rows[0]["hdpo/privileged_success"]) == (1.0, 0.5)
    assert len(toys.tasks) == 6
    toys, rows = await trained_with(tmp_path / "all", HDPO, "loop.steps=1", broken=frozenset({1, 3}))
    assert (rows[0]["groups/failed"], rows[0]["hdpo/kept_tokens"]) == (2.0, 0.0)
    assert len(toys.tasks) == 6


async def test_distillation_learns_from_every_response_and_says_how_far_it_is(tmp_path: Path) -> None:
    toys, rows = await trained_with(tmp_path / "run", SDPO, "loop.steps=2", "optim.minibatches=2")
    assert len(toys.tasks) == 8
    for row in rows:
        assert row["distill/evidence_fraction"] == 1.0
        assert row["distill/success_group_fraction"] == 0.5
        assert row["tokens/trained"] == row["tokens/generated"]
        assert row["distill/teacher_mass"] + row["distill/tail_mass"] == pytest.approx(1.0, abs=1e-5)
        assert row["grad_norm"] > 0


@pytest.mark.parametrize("algorithm", [HDPO, SDPO, NEAR, OPSD], ids=["hdpo", "sdpo", "near", "opsd"])
async def test_the_real_teacher_and_learner_agree_on_every_policy_of_a_run(tmp_path: Path, algorithm: str) -> None:
    _, rows = await trained_with(tmp_path / "run", algorithm, "loop.steps=2", "optim.lr=1e-2", real=True)
    for row in rows:
        assert row["groups/failed"] == 0  # the adapter's proof was accepted
        assert row["distill/divergence"] > 0
        assert row["grad_norm"] > 0
        assert 0 < row["distill/student_mass"] <= 1 + 1e-5
        if algorithm == OPSD:
            assert row["distill/teacher_mass"] == pytest.approx(
                row["distill/student_mass"], abs=1e-4
            )  # both distributions sum to 1
    assert rows[0]["distill/divergence"] != rows[1]["distill/divergence"]
