"""A trainer of two processes in a run on preference pairs, which samples nothing: two runs agree up to rounding."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from cepo.run.child import Child
from cepo.run.file import load
from cepo.run.folder import RunDir
from cepo.run.local import Stack, running
from tests.helpers.factories import make_config
from tests.helpers.runs import begin_run
from tests.pipeline.support import kill
from tests.unit.deploy.test_parity import in_kubernetes
from tests.unit.trainer.test_pairs import ROWS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 8


def run_of(tmp_path: Path, name: str, *overrides: str) -> RunDir:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = ("data.eval=''", "data.instruction=''", 'algorithm={name="dpo"}', "sampling.prompts=3", "optim.lr=1e-4")
    folder = RunDir(tmp_path / name)
    begin_run(folder, make_config(f"data.train={pairs}", *settings, f"loop.steps={STEPS}", *overrides))
    return folder


def pod(number: int, folder: RunDir, trainer: Child, port: int) -> Child:
    """The process of a pod of the Kubernetes overlay `multi-node`, with the paths and addresses of this machine."""
    container, variables = in_kubernetes("trainer", "multi-node")
    here = {"python": sys.executable, "/etc/cepo/run/run.toml": str(folder.config), "/runs/run": str(folder.path)}
    ours = {"NODE_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NPROC_PER_NODE": "1"}
    return Child(
        f"trainer-{number}",
        [here.get(word, word) for word in container["command"]],
        trainer.environment
        | {name: value for name, value in variables.items() if name.startswith("PET_")}
        | {f"PET_{name}": value for name, value in ours.items()}
        | {"GLOO_SOCKET_IFNAME": "lo"},
        folder.logs / f"trainer-{number}.log",
    )


def adapter(folder: RunDir) -> dict[str, Tensor]:
    return load_file(folder.adapters / f"v{STEPS:06d}" / "adapter_model.safetensors")


def test_two_processes_killed_and_started_again_as_two_pods_make_the_adapter_of_one(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """First the trainer starts both processes; then two torchruns start one each, and are restarted as by the Job."""
    folder = run_of(tmp_path, "shared", "engine.trainer_processes=2")
    stack = Stack(load(folder.config), folder, services=("teacher", "trainer"))
    port, trainer = free_port(), stack.children["trainer"]
    first, second = (pod(number, folder, trainer, port) for number in range(2))
    disturbed, stopped = list[float](), 0.0
    started, rows_before = 0.0, 0

    def interfere() -> None:
        """Disturbs each start of the trainer once, after it has finished a step: two kills, then SIGTERM."""
        nonlocal started, rows_before, stopped
        rows = len(folder.rows())
        if trainer.started[-1] != started:
            started, rows_before = trainer.started[-1], rows
        if rows <= max(1, rows_before) or started in disturbed or len(disturbed) == 3:
            return
        disturbed.append(started)
        if len(disturbed) == 1:
            trainer.command, trainer.environment = first.command, first.environment
            stack.children[second.name] = second
            second.start()
        if len(disturbed) < 3:
            kill("follower", folder.path)
        else:
            stopped = time.monotonic()
            trainer.terminate()  # its torchrun, which stops all processes after the current step

    with running(stack):
        while not stack.check():
            interfere()
            time.sleep(0.05)
        assert second.process is not None
        assert second.process.wait(30) == 0
    assert len(disturbed) == 3
    assert trainer.started[-1] - stopped < 30, "the processes waited for each other when they stopped"
    said = [json.loads(line)["message"] for line in trainer.log.open() if line.startswith("{")]
    assert [line for line in said if "SIGKILL" in line] == [
        "process 2 of 2 was killed by SIGKILL; the trainer exits, and resumes from its newest checkpoint when it is "
        "started again"
    ]
    assert [row["step"] for row in folder.rows()] == list(range(STEPS))

    alone = run_of(tmp_path, "alone")
    with running(Stack(load(alone.config), alone, services=("teacher", "trainer"))) as stack:
        while not stack.check():
            time.sleep(0.05)
    for name, value in adapter(alone).items():
        assert float((adapter(folder)[name] - value).abs().max()) < 1e-5, name
    assert max(float(value.abs().max()) for name, value in adapter(alone).items() if "lora_B" in name) > 1e-4
