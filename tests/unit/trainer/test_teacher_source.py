"""The teacher's version at each step, also in a resumed run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cepo.algo.teacher import TeacherSource
from cepo.messages.arrays import Float32Array
from cepo.messages.groups import BASE_POLICY, PolicyProof, PolicyRef
from cepo.net.settings import Settings
from cepo.prompts.renderer import Renderer
from cepo.service import adapters
from cepo.service.adapters import AdapterCache
from cepo.teaching.engine import TransformersScorer
from cepo.teaching.handler import Pair
from cepo.testing import MemoryBus
from services.trainer.checkpoint import Checkpoints
from services.trainer.learning.batch import pack
from services.trainer.learning.learner import Learner
from services.trainer.pipeline import Pipeline
from services.trainer.publisher import Publisher
from services.trainer.teacher import Teacher
from tests.helpers.factories import make_config, make_ragged, make_task
from tests.parity.support import golden

torch.set_num_threads(1)
RENDERER = Renderer(make_config().model.path)


class Process:
    """The parts of a trainer that choose the teacher, as one process builds them."""

    def __init__(self, folder: Path, source: TeacherSource, *overrides: str) -> None:
        self.config = make_config("lora.rank=2", *overrides)
        self.learner = Learner(self.config)
        self.publisher = Publisher(
            folder / "adapters", self.learner, MemoryBus(), RENDERER.canary_ids(16), RENDERER.sha256, "float32"
        )
        self.teacher = Teacher(source, self.learner, self.publisher)
        self.checkpoints = Checkpoints(folder / "checkpoints", self.learner, self.publisher, self.teacher, 1, 2)

    async def steps(self, pipeline: Pipeline, until: int) -> list[Pipeline]:
        """Updates and publishes as the loop does; returns the pipeline before and after each step."""
        seen = [pipeline]
        for step in range(pipeline.next_step, until):
            batch = pack(make_ragged([(4, 6), (3, 5)], seed=step))
            algorithm = self.config.algorithm
            self.learner.update(batch, algorithm.advantages(batch, step).adv_BT, algorithm, step)
            policy = await self.publisher.publish(step + 1)
            seen.append(seen[-1].advanced(policy, await self.teacher.of(policy, seen[-1].newest.teacher)))
        return seen


START = Pipeline.start(lag=0)
SOURCES = {
    "actor": TeacherSource(),
    "reference": TeacherSource(source="reference"),
    "sync": TeacherSource(source="sync", sync_every=2),
    "ema": TeacherSource(source="ema", ema_rate=0.05),
    "trust_region": TeacherSource(source="trust_region", actor_share=0.05),
}


@pytest.mark.parametrize(
    ("source", "versions"),
    [
        ("actor", [0, 1, 2, 3, 4, 5]),
        ("reference", [0] * 6),
        ("sync", [0, 0, 2, 2, 4, 4]),
        ("ema", [0, 1, 2, 3, 4, 5]),
        ("trust_region", [0, 1, 2, 3, 4, 5]),
    ],
)
async def test_the_teacher_of_every_version(tmp_path: Path, source: str, versions: list[int]) -> None:
    pipelines = await Process(tmp_path, SOURCES[source]).steps(START, 5)
    assert [pipeline.newest.teacher.version for pipeline in pipelines] == versions
    same = [pipeline.newest.teacher == pipeline.newest.policy for pipeline in pipelines]
    assert (
        same
        == {
            "actor": [True] * 6,
            "reference": [True] + [False] * 5,
            "sync": [True, False] * 3,  # the versions 2 and 4 are copies of the policy
            "ema": [True] + [False] * 5,
            "trust_region": [True] * 6,
        }[source]
    )


async def test_an_average_is_a_policy_that_the_teacher_can_fetch_and_prove(tmp_path: Path) -> None:
    process = Process(tmp_path, SOURCES["ema"])
    (*_, last) = await process.steps(START, 2)
    policy, teacher = last.newest.policy, last.newest.teacher

    async def fetch(version: PolicyRef) -> dict[str, bytes]:
        return adapters.read(process.publisher.folder(version))

    settings = Settings(model=process.config.model.path, dtype="float32", max_loras=2)
    engine = TransformersScorer(settings, RENDERER, AdapterCache(tmp_path / "cache", fetch, keep=2))
    versions = (policy, teacher, BASE_POLICY)
    assert [process.publisher.check(await engine.load(version)) for version in versions] == [None] * 3
    pair = Pair(RENDERER.canary_ids(16)[:8], RENDERER.canary_ids(16)[8:])
    scores = [(await engine.score([pair], 1.0, version)).values[0] for version in versions]
    assert len(set(scores)) == 3
    assert process.publisher.folder(teacher) == tmp_path / "adapters" / "ema-v000002"
    assert process.publisher.folder(policy) == tmp_path / "adapters" / "v000002"
    assert adapters.digest(adapters.read(process.publisher.folder(teacher))) == teacher.sha256
    right = process.publisher.expected(teacher).canary_logps
    assert process.publisher.check(proof_of(teacher, right)) is None
    assert process.publisher.check(proof_of(teacher, [logp - 1 for logp in right])) is not None
    assert process.publisher.expected(policy).canary_logps != right


def proof_of(policy: PolicyRef, canary_logps: Sequence[float]) -> PolicyProof:
    return PolicyProof(
        policy=policy,
        bound_modules=28,
        canary_logp=0.0,
        canary_logps=Float32Array.of(canary_logps),
        tokenizer_sha256=RENDERER.sha256,
        engine="toy",
    )


async def test_publishing_an_average_leaves_the_learner_as_it_was(tmp_path: Path) -> None:
    process = Process(tmp_path, SOURCES["ema"])
    (*_, last) = await process.steps(START, 1)
    assert adapters.digest(process.learner.adapter_files()) == last.newest.policy.sha256
    assert all(parameter.requires_grad for parameter in process.learner.parameters)


async def test_the_average_follows_the_published_numbers(tmp_path: Path) -> None:
    expected = golden("formula_only")["ema_rate_0.05"]
    process = Process(tmp_path, SOURCES["ema"])

    def filled(value: float) -> dict[str, torch.Tensor]:
        return {name: torch.full_like(weight, value) for name, weight in process.learner.adapter().items()}

    process.teacher.average, teacher = filled(expected["teacher0"]), BASE_POLICY
    for version, step in enumerate(expected["steps"], 1):
        with process.learner.using_adapter(filled(step["student"])):
            policy = await process.publisher.publish(version)
            teacher = await process.teacher.of(policy, teacher)
        with process.learner.using_adapter(process.teacher.average):
            assert adapters.digest(process.learner.adapter_files()) == teacher.sha256
        for weight in process.teacher.average.values():
            torch.testing.assert_close(weight, torch.full_like(weight, step["teacher"]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("source", SOURCES)
async def test_a_resumed_run_has_the_teachers_of_one_that_never_stopped(tmp_path: Path, source: str) -> None:
    unbroken = await Process(tmp_path / "unbroken", SOURCES[source]).steps(START, 5)
    first = Process(tmp_path, SOURCES[source])
    (*_, saved) = await first.steps(START, 3)
    first.checkpoints.save(saved)
    second = Process(tmp_path, SOURCES[source], "loop.seed=77")
    restored = second.checkpoints.restore()
    assert restored == saved == unbroken[3]
    assert await second.steps(restored, 5) == unbroken[3:]
    teacher = restored.newest.teacher
    assert second.publisher.expected(teacher) == first.publisher.expected(teacher)
    if teacher != BASE_POLICY:
        assert adapters.digest(adapters.read(second.publisher.folder(teacher))) == teacher.sha256


async def test_metrics_say_how_far_the_teacher_is_behind(tmp_path: Path) -> None:
    process = Process(tmp_path, SOURCES["ema"])
    task = make_task(policy=PolicyRef(version=7, sha256="ab" * 32), teacher=PolicyRef(version=4, sha256="cd" * 32))
    assert process.teacher.metrics(task) == {"teacher/behind": 3.0, "teacher/distance": 0.0}
    process.teacher.average = {name: weight + 0.5 for name, weight in process.teacher.average.items()}
    count = sum(weight.numel() for weight in process.teacher.average.values())
    assert process.teacher.metrics(task)["teacher/distance"] == pytest.approx(0.5 * count**0.5, rel=1e-4)
