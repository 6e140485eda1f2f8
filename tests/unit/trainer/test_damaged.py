"""A run whose checkpoints, adapters or metrics are damaged resumes from what is whole, and says what was not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cepo.errors import UserError
from cepo.messages.groups import BASE_POLICY, PolicyRef
from cepo.service import adapters
from services.trainer.pipeline import Pinned, Pipeline
from tests.unit.trainer.test_checkpoint import Process, saved

torch.set_num_threads(1)


def cut(folder: Path) -> None:
    file = folder / "state.pt"
    file.write_bytes(file.read_bytes()[:-5000])


def empty(folder: Path) -> None:
    (folder / "state.pt").write_bytes(b"")


def missing(folder: Path) -> None:
    (folder / "state.pt").unlink()


def one_bit(folder: Path) -> None:
    """Flips a bit of a tensor, which PyTorch would load without a word."""
    file = folder / "state.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {"cut": cut, "empty": empty, "missing": missing, "one bit": one_bit}


class SavedRun:
    """A run of three steps with a checkpoint after each; its folders can be copied."""

    def __init__(self, folder: Path, *overrides: str, lag: int = 0) -> None:
        self.folder = folder
        self.process = Process(folder, *overrides, keep=3)
        self.pipeline = Pipeline.start(lag)

    async def train(self, steps: int = 3) -> None:
        for step in range(1, steps + 1):
            self.process.train(step)
            policy = await self.process.publisher.publish(step)
            teacher = await self.process.teacher.of(policy, self.pipeline.newest.teacher)
            self.pipeline = self.pipeline.advanced(policy, teacher)
            self.process.checkpoints.save(self.pipeline)


def resumed(folder: Path, *overrides: str) -> tuple[Process, Pipeline, list[str]]:
    """A new process that has restored the run, with what it told the user."""
    process, notes = Process(folder, *overrides), list[str]()
    process.checkpoints._note = notes.append
    pipeline = process.checkpoints.restore()
    assert pipeline is not None
    return process, pipeline, notes


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_a_damaged_checkpoint_is_told_and_the_newest_whole_one_gives_the_same_bytes(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    run = SavedRun(tmp_path)
    await run.train()
    newest = tmp_path / "checkpoints" / "step-000003"
    damage(newest)
    process, pipeline, notes = resumed(tmp_path)
    assert pipeline.next_step == 2
    (note,) = notes
    assert note.startswith(f"{newest / 'state.pt'} is ")
    assert note.endswith(f"; resumed from {newest.with_name('step-000002')}, the newest whole checkpoint")
    assert saved(tmp_path) == ["damaged-step-000003", "step-000001", "step-000002"]
    process.train(3)
    assert process.learner.adapter_files() == run.process.learner.adapter_files()
    assert await process.publisher.publish(3) == run.pipeline.newest.policy


async def test_a_damaged_checkpoint_does_not_count_among_those_to_keep(tmp_path: Path) -> None:
    await SavedRun(tmp_path).train()
    cut(tmp_path / "checkpoints" / "step-000003")
    process = Process(tmp_path, keep=1)
    process.checkpoints.restore()
    process.checkpoints.save(Pipeline(2, (Pinned(BASE_POLICY, BASE_POLICY),)))
    assert process.checkpoints.restore() == Pipeline(2, (Pinned(BASE_POLICY, BASE_POLICY),))


async def test_a_run_whose_checkpoints_are_all_damaged_is_refused_in_one_line(tmp_path: Path) -> None:
    await SavedRun(tmp_path).train()
    folders = sorted((tmp_path / "checkpoints").iterdir())
    for folder in folders:
        cut(folder)
    with pytest.raises(UserError) as error:
        Process(tmp_path).checkpoints.restore()
    said = str(error.value)
    assert "\n" not in said
    assert said.startswith(f"{folders[-1] / 'state.pt'} is cut short or damaged (")
    assert f"no older checkpoint is whole. Restore {folders[-1]} from a copy, or delete {tmp_path}" in said
    assert sorted((tmp_path / "checkpoints").iterdir()) == folders, "a refused resume changes nothing"


@pytest.mark.parametrize("name", ["v000003", "ema-v000003"])
@pytest.mark.parametrize("lost", [True, False])
async def test_a_damaged_adapter_is_written_again_from_its_checkpoint(tmp_path: Path, name: str, lost: bool) -> None:
    ema = ("algorithm.teacher.source=ema", "algorithm.teacher.ema_rate=0.25")
    run = SavedRun(tmp_path, *ema)
    await run.train()
    adapter = tmp_path / "adapters" / name
    before = adapters.read(adapter)
    if lost:
        shutil.rmtree(adapter)
    else:
        (adapter / "adapter_model.safetensors").write_bytes(b"damaged")
    _, pipeline, notes = resumed(tmp_path, *ema)
    assert pipeline == run.pipeline
    assert notes == [f"{adapter} was damaged or missing, and was written again from {adapter_source(tmp_path)}"]
    assert adapters.read(adapter) == before


def adapter_source(folder: Path) -> Path:
    return folder / "checkpoints" / "step-000003"


async def test_an_older_adapter_is_written_again_from_an_older_checkpoint(tmp_path: Path) -> None:
    run = SavedRun(tmp_path, lag=1)
    await run.train()
    older = run.pipeline.pinned[0].policy
    adapter = tmp_path / "adapters" / "v000002"
    before = adapters.read(adapter)
    (adapter / "adapter_config.json").unlink()
    process, pipeline, notes = resumed(tmp_path)
    assert pipeline == run.pipeline
    assert notes == [f"{adapter} was damaged or missing, and was written again from {tmp_path}/checkpoints/step-000002"]
    assert (adapters.read(adapter), process.publisher.intact(older)) == (before, True)
    assert process.learner.adapter_files() == run.process.learner.adapter_files()


async def test_a_checkpoint_whose_older_adapter_is_lost_for_good_is_not_used(tmp_path: Path) -> None:
    run = SavedRun(tmp_path, lag=1)
    await run.train()
    shutil.rmtree(tmp_path / "adapters" / "v000002")
    shutil.rmtree(tmp_path / "checkpoints" / "step-000002")
    _, pipeline, (note,) = resumed(tmp_path)
    assert pipeline.next_step == 1
    assert note.startswith(f"{tmp_path / 'adapters' / 'v000002'} is damaged or missing, and no checkpoint holds its")


async def test_weights_that_give_another_canary_after_the_resume_are_noticed(tmp_path: Path) -> None:
    await SavedRun(tmp_path).train()
    same, pipeline, _ = resumed(tmp_path)
    policy = pipeline.newest.policy
    assert same.publisher.restored_otherwise(policy) == ""
    other, pipeline, _ = resumed(tmp_path, "lora.alpha=256")
    assert other.publisher.restored_otherwise(policy).endswith(f"when {policy.name} was saved")
    renewed = pipeline.renewed(PolicyRef(version=3, sha256="cd" * 32))
    assert renewed.newest.policy == renewed.newest.teacher != policy
