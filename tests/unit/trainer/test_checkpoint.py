"""A run that stops and resumes equals the run that never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cepo.errors import UserError
from cepo.messages.arrays import Float32Array
from cepo.messages.groups import BASE_POLICY, PolicyProof
from cepo.prompts.renderer import Renderer
from cepo.testing import MemoryBus
from services.trainer.checkpoint import Checkpoints
from services.trainer.learning.batch import pack
from services.trainer.learning.learner import Learner
from services.trainer.pipeline import Pinned, Pipeline
from services.trainer.publisher import Publisher
from services.trainer.teacher import Teacher
from tests.helpers.factories import POLICY, make_config, make_ragged

torch.set_num_threads(1)
BASE = Pinned(BASE_POLICY, BASE_POLICY)
RUN = ("optim.minibatches=2", "optim.schedule=cosine", "optim.warmup_steps=1", "loop.steps=9")
RENDERER = Renderer(make_config().model.path)
START = Pipeline.start(lag=0)


class Process:
    """The parts of a trainer that a checkpoint saves, as one process builds them."""

    def __init__(
        self,
        folder: Path,
        *overrides: str,
        every: int = 1,
        keep: int = 2,
        keep_policies: int = 0,
        problems_sha256: str = "",
    ) -> None:
        self.config = make_config(*RUN, *overrides)
        self.learner = Learner(self.config)
        self.publisher = Publisher(
            folder / "adapters", self.learner, MemoryBus(), RENDERER.canary_ids(16), RENDERER.sha256, "float32"
        )
        self.teacher = Teacher(self.config.algorithm.teacher_source, self.learner, self.publisher)
        self.checkpoints = Checkpoints(
            folder / "checkpoints",
            self.learner,
            self.publisher,
            self.teacher,
            every,
            keep,
            keep_policies,
            problems_sha256,
        )

    def train(self, step: int) -> dict[str, float]:
        batch = pack(make_ragged([(4, 6, 2), (3, 5, 0)], seed=step))
        adv_BT = self.config.algorithm.advantages(batch, step).adv_BT
        return self.learner.update(batch, adv_BT, self.config.algorithm, step)


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def timeless(report: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in report.items() if not key.startswith("time/")}


def test_resuming_is_bit_identical_to_never_having_stopped(tmp_path: Path) -> None:
    unbroken = Process(tmp_path / "unbroken")
    unbroken.train(1)
    report = unbroken.train(2)
    first = Process(tmp_path)
    first.train(1)
    first.checkpoints.save(Pipeline(2, (BASE,)))
    second = Process(tmp_path, "loop.seed=77")  # another seed, so that all state must come from the checkpoint
    assert second.learner.adapter_files() != first.learner.adapter_files()
    assert second.checkpoints.restore() == Pipeline(2, (BASE,))
    assert second.learner.adapter_files() == first.learner.adapter_files()
    assert timeless(second.train(2)) == timeless(report)
    assert second.learner.adapter_files() == unbroken.learner.adapter_files()


def test_the_random_numbers_continue_where_they_stopped(tmp_path: Path) -> None:
    Process(tmp_path).checkpoints.save(START)
    expected = torch.rand(4)
    process = Process(tmp_path)
    torch.rand(100)
    process.checkpoints.restore()
    assert torch.equal(torch.rand(4), expected)


async def test_policies_in_flight_are_still_proven_after_a_restart(tmp_path: Path) -> None:
    first = Process(tmp_path)
    policies = [BASE_POLICY]
    for step in (1, 2):
        first.train(step)
        policies.append(await first.publisher.publish(step))
    proofs = [
        PolicyProof(
            policy=policy,
            bound_modules=first.publisher.expected(policy).bound_modules,
            canary_logp=0.0,
            canary_logps=Float32Array.of(first.publisher.expected(policy).canary_logps),
            tokenizer_sha256=RENDERER.sha256,
            engine="vllm",
        )
        for policy in policies
    ]
    first.checkpoints.save(Pipeline(3, tuple(Pinned(policy, policy) for policy in policies[1:])))
    second = Process(tmp_path)
    assert [second.publisher.check(proof) is None for proof in proofs] == [True, False, False]
    assert second.checkpoints.restore() == Pipeline(3, tuple(Pinned(policy, policy) for policy in policies[1:]))
    assert [second.publisher.check(proof) for proof in proofs] == [None, None, None]
    assert second.publisher.check(proofs[2].model_copy(update={"policy": POLICY})) is not None
    assert await second.publisher.publish(2) == policies[2]


def test_without_a_checkpoint_a_run_starts_afresh(tmp_path: Path) -> None:
    assert Process(tmp_path).checkpoints.restore() is None


def test_a_run_resumes_from_the_newest_checkpoint(tmp_path: Path) -> None:
    process = Process(tmp_path, keep=3)
    for step in (2, 10, 9):
        process.checkpoints.save(Pipeline(step, (BASE,)))
    assert process.checkpoints.restore() == Pipeline(10, (BASE,))


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    process = Process(tmp_path, keep=2)
    for step in range(1, 6):
        process.checkpoints.save(Pipeline(step, (BASE,)))
    assert saved(tmp_path) == ["step-000004", "step-000005"]


def test_checkpoints_are_saved_at_the_interval_and_after_the_last_step(tmp_path: Path) -> None:
    process = Process(tmp_path, every=3, keep=9)
    for step in range(1, 8):
        process.checkpoints.maybe_save(Pipeline(step, (BASE,)), last=step == 7)
    assert saved(tmp_path) == ["step-000003", "step-000006", "step-000007"]


def test_a_folder_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.checkpoints.save(Pipeline(1, (BASE,)))
    cut = tmp_path / "checkpoints" / ".step-000002"
    cut.mkdir()
    (cut / "state.pt").write_bytes(b"half")
    assert process.checkpoints.restore() == Pipeline(1, (BASE,))
    process.checkpoints.save(Pipeline(2, (BASE,)))
    assert saved(tmp_path) == ["step-000001", "step-000002"]
    assert process.checkpoints.restore() == Pipeline(2, (BASE,))


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.checkpoints.save(Pipeline(1, (BASE,)))
    process.train(1)
    process.checkpoints.save(Pipeline(1, (BASE,)))
    assert saved(tmp_path) == ["step-000001"]
    fresh = Process(tmp_path)
    fresh.checkpoints.restore()
    assert fresh.learner.adapter_files() == process.learner.adapter_files()


@pytest.mark.parametrize("change", ["lora.rank=4", 'lora.targets=["q_proj"]'])
def test_a_checkpoint_of_another_adapter_is_refused(tmp_path: Path, change: str) -> None:
    first = Process(tmp_path)
    first.train(1)
    first.checkpoints.save(Pipeline(1, (BASE,)))
    with pytest.raises(UserError, match="does not fit this run's lora and algorithm sections; resume with"):
        Process(tmp_path, change).checkpoints.restore()
    wider = tmp_path / "wider"
    narrow = Process(wider, change)
    narrow.checkpoints.save(Pipeline(1, (BASE,)))
    with pytest.raises(UserError, match="does not fit"):
        Process(wider).checkpoints.restore()
    shutil.rmtree(wider / "checkpoints")
    assert Process(wider).checkpoints.restore() is None


def test_a_checkpoint_of_other_problems_is_refused(tmp_path: Path) -> None:
    Process(tmp_path, problems_sha256="a" * 64).checkpoints.save(START)
    assert Process(tmp_path, problems_sha256="a" * 64).checkpoints.restore() == START
    with pytest.raises(
        UserError, match=f"step-000000 was trained on problems with sha256 {'a' * 64}, and .*{'b' * 64}"
    ):
        Process(tmp_path, problems_sha256="b" * 64).checkpoints.restore()


def test_a_checkpoint_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    Process(tmp_path).checkpoints.save(START)
    file = tmp_path / "checkpoints" / "step-000000" / "state.pt"
    state = torch.load(file, weights_only=True)
    for row in state["policies"]:
        del row["canary_logps"]
    torch.save(state, file)
    with pytest.raises(
        UserError, match="was saved by another version of CEPO, without 'canary_logps'; resume with that"
    ):
        Process(tmp_path).checkpoints.restore()
