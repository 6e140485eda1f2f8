"""A run whose teacher is a moving average inside the trainer's process, with peers as hints, survives SIGKILL of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline.support import asked, held, kill, rows, run, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 6
RATE = 0.25
SETTINGS = (
    "engine.teacher=colocated",
    "algorithm.teacher.source=ema",
    f"algorithm.teacher.ema_rate={RATE}",
    "algorithm.positive=peer_full",
    "algorithm.negative=peer_suffix",
    "algorithm.feedback_tokens=12",
    "algorithm.wrong_hints=2",
    "data.placement=assistant",
)


def weights(run_dir: Path, folder: str) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "adapters" / folder / "adapter_model.safetensors")


def test_an_average_teaches_through_a_killed_trainer(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with run(run_dir, *(word for setting in SETTINGS for word in ("--set", setting))) as process:
        wait_until(lambda: len(rows(run_dir)) > 1, process)
        with held(run_dir):
            addresses = json.loads((run_dir / "services.json").read_text())
            assert set(addresses["http"]) == set(addresses["grpc"]) == {"trainer", "rollout", "verifier"}
            assert 'cepo_groups_in_progress{stage="teach"}' in asked(f"{addresses['http']['trainer']}/metrics")
            kill("trainer", run_dir)
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert not (run_dir / "logs" / "teacher.log").exists()

    metrics = rows(run_dir)
    assert [row["step"] for row in metrics] == list(range(STEPS))
    assert {(row["groups/failed"], row["teacher/behind"]) for row in metrics} == {(0.0, 0.0)}
    assert all(row["teacher/distance"] > 0 for row in metrics[1:])
    assert sum(row["credit/tokens"] for row in metrics) > 0
    assert 0 < max(row["hint/rejected_tokens"] for row in metrics) <= 12
    assert max(row["hint/rejected_asked"] for row in metrics) > 0

    for version in range(2, STEPS + 1):  # each average continues from the previous version, also across the restart
        before, now = weights(run_dir, f"ema-v{version - 1:06d}"), weights(run_dir, f"v{version:06d}")
        for name, weight in weights(run_dir, f"ema-v{version:06d}").items():
            torch.testing.assert_close(weight, before[name].lerp(now[name], RATE), rtol=1e-6, atol=1e-9)
