"""A trainer of two processes in a run of real services on pairs, which nobody samples: runs compare to rounding."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from cepo.local import Stack, running
from cepo.rundir import RunDir
from cepo.runfile import load
from tests.factories import make_config
from tests.pipeline.support import kill
from tests.unit.trainer.test_pairs import ROWS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 8
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "services.trainer"]


def run_of(tmp_path: Path, name: str, *overrides: str) -> RunDir:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = ("data.eval=''", "data.instruction=''", 'algorithm={name="dpo"}', "sampling.prompts=3", "optim.lr=1e-4")
    folder = RunDir(tmp_path / name)
    folder.create(make_config(f"data.train={pairs}", *settings, f"loop.steps={STEPS}", *overrides), resume=False)
    return folder


def finish(stack: Stack, meanwhile: Callable[[], None] = lambda: None) -> None:
    with running(stack):
        while not stack.check():
            meanwhile()
            time.sleep(0.05)


def adapter(folder: RunDir) -> dict[str, Tensor]:
    return load_file(folder.adapters / f"v{STEPS:06d}" / "adapter_model.safetensors")


def test_two_processes_killed_and_started_again_by_torchrun_make_the_adapter_of_one(
    tmp_path: Path,
) -> None:
    folder = run_of(tmp_path, "shared", "engine.trainer_processes=2")
    stack = Stack(load(folder.config), folder, services=("teacher", "trainer"))
    killed_at = 0

    def interfere() -> None:
        nonlocal killed_at
        if not killed_at and len(folder.rows()) >= 2:
            killed_at = len(folder.rows())
            stack.children["trainer"].command = [sys.executable, *TORCHRUN, str(folder.path)]
            kill("follower", folder.path)

    finish(stack, interfere)
    assert 2 <= killed_at < STEPS
    said = [json.loads(line)["message"] for line in (folder.logs / "trainer.log").open() if "SIGKILL" in line]
    assert said == [
        "process 2 of 2 was killed by SIGKILL; the trainer ends, and goes on from its newest checkpoint when it is "
        "started again"
    ]
    assert [row["step"] for row in folder.rows()] == list(range(STEPS))

    alone = run_of(tmp_path, "alone")
    finish(Stack(load(alone.config), alone, services=("teacher", "trainer")))
    for name, value in adapter(alone).items():
        assert float((adapter(folder)[name] - value).abs().max()) < 1e-5, name
    assert max(float(value.abs().max()) for name, value in adapter(alone).items() if "lora_B" in name) > 1e-4
