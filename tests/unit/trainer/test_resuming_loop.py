"""A trainer that resumes with another policy, that diverges, or whose checkpoint and metrics are damaged."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cepo.errors import UserError
from cepo.messages.groups import BASE_POLICY
from cepo.net.settings import Settings
from cepo.run.folder import RunDir
from cepo.run.lock import IN_USE, locked
from cepo.run.resuming import check_changes, record
from cepo.testing import MemoryBus
from services.trainer.__main__ import assemble, main
from tests.helpers.runs import begin_run
from tests.unit.trainer.loops import timeless
from tests.unit.trainer.test_pairs import ROWS, config_of, taught

torch.set_num_threads(1)
STEPS = "loop.steps=4"


async def half_done(tmp_path: Path, *overrides: str, name: str = "run") -> tuple[RunDir, Any]:
    """A run on pairs of four steps that was drained after its first ones."""
    folder, config = RunDir(tmp_path / name), config_of(tmp_path / "pairs.jsonl", ROWS, STEPS, *overrides)
    begin_run(folder, config)
    assert 1 <= len(await taught(folder, until=1)) < 4
    return folder, config


def only_error(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        (group,) = group.exceptions
    return group


async def refused(folder: RunDir) -> str:
    """The message of the UserError that ends a trainer."""
    with pytest.raises(BaseExceptionGroup) as group:
        await taught(folder)
    error = only_error(group.value)
    assert isinstance(error, UserError)
    return str(error)


async def test_another_alpha_is_refused_by_the_canary_unless_it_was_allowed(tmp_path: Path) -> None:
    folder, config = await half_done(tmp_path)
    other = config_of(tmp_path / "pairs.jsonl", ROWS, STEPS, "lora.alpha=256")
    done = len(folder.rows())
    published = (folder.adapters / f"v{done:06d}" / "adapter_config.json").read_text()
    folder.create(other, resume=True)  # as an editor of config.toml would change it
    said = await refused(folder)
    assert said.startswith("the restored weights give the canary log-prob -")
    assert f"when v{done:06d}-" in said
    assert said.endswith(f"have changed since. Restore them; {folder.config} has the run's values")
    record(folder, check_changes(config, other, ["lora.alpha"], folder))
    rows = await taught(folder)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert (folder.adapters / f"v{done:06d}" / "adapter_config.json").read_text() != published
    assert "lora.alpha changed the policy, whose version" in folder.status.read_text()


async def test_a_run_goes_on_to_the_same_numbers_from_the_older_checkpoint_and_a_cut_metrics_file(
    tmp_path: Path,
) -> None:
    whole = RunDir(tmp_path / "whole")
    begin_run(whole, config_of(tmp_path / "pairs.jsonl", ROWS, STEPS))
    rows = await taught(whole)
    folder, _ = await half_done(tmp_path)
    await taught(folder, until=2)
    newest = sorted(folder.checkpoints.glob("step-*"))[-1]
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:20_000])
    folder.metrics.write_bytes(folder.metrics.read_bytes()[:-30])
    assert timeless(await taught(folder)) == timeless(rows)
    assert "the newest whole checkpoint" in folder.status.read_text()
    last = [sorted(each.adapters.glob("v*/*.safetensors"))[-1].read_bytes() for each in (whole, folder)]
    assert last[0] == last[1]


async def test_updates_that_are_skipped_are_told_and_several_in_a_row_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunDir(tmp_path / "run")
    begin_run(folder, config_of(tmp_path / "pairs.jsonl", ROWS, STEPS))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.nan))
    said = await refused(folder)
    assert said.startswith(
        "training has diverged: the gradient of 1 updates in step 2 was not finite, and that of 3 updates in a row. "
    )
    rows = folder.rows()
    assert [(row["step"], row["updates/skipped"], row["grad_norm"]) for row in rows] == [(0, 1.0, 0.0), (1, 1.0, 0.0)]
    assert "the gradient of 1 updates in step 0 was not finite; they were skipped" in folder.status.read_text()
    monkeypatch.undo()
    assert len(await taught(folder)) == 4


async def test_a_diverged_update_ends_the_run_and_its_checkpoints_stay_usable(tmp_path: Path) -> None:
    folder, config = await half_done(tmp_path)
    before = {path.name for path in folder.checkpoints.iterdir()}
    folder.create(config_of(tmp_path / "pairs.jsonl", ROWS, STEPS, "optim.lr=1e30"), resume=True)
    assert (await refused(folder)).startswith("training has diverged: under version ")
    assert {path.name for path in folder.checkpoints.iterdir()} == before
    folder.create(config, resume=True)
    assert len(await taught(folder)) == 4


@pytest.mark.parametrize("name", ["my run", "läufe", "実験 1"])
async def test_any_folder_name_makes_a_run(tmp_path: Path, name: str) -> None:
    folder, _ = await half_done(tmp_path, "loop.steps=2", name=name)
    rows = await taught(folder)
    assert len(rows) == 2
    tasks = assemble(folder, MemoryBus(), Settings()).feeder.tasks(0, BASE_POLICY, BASE_POLICY)
    assert {task.run for task in tasks} == {folder.name}


def test_a_second_trainer_of_a_run_is_refused_before_it_touches_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunDir(tmp_path / "run")
    with locked(folder.trainer_lock), pytest.raises(SystemExit) as ended:
        main([str(folder.path)])
    assert ended.value.code == IN_USE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cepo trainer: {folder.path} is in use by process {os.getpid()} on ")
    assert list(folder.path.iterdir()) == []
