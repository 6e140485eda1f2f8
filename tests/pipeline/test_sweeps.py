"""Sweeps with real engines that are kept from run to run."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.support import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1200)]

SHORT = ("loop.steps=2", "eval.every=2", "eval.prompts=16", "sampling.prompts=4")


def adapter(run: Path) -> str:
    return hashlib.sha256((run / "adapters" / "v000002" / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_a_run_on_kept_services_has_the_bytes_of_a_run_with_its_own(tmp_path: Path) -> None:
    """The shortened evidence: nine methods on the same engines, of which one is trained again with its own."""
    chosen = [word for setting in SHORT for word in ("--set", setting)]
    file = ROOT / "deploy" / "sweeps" / "evidence.toml"
    cepo = [sys.executable, "-m", "cepo"]
    subprocess.run([*cepo, "sweep", str(file), "--run-dir", str(tmp_path / "s"), "--seeds", "0", *chosen], check=True)
    stored = json.loads((tmp_path / "s" / "results.json").read_text())["runs"]
    assert [list(run["seeds"]) for run in stored] == [["0"]] * 9
    alone = [*cepo, "train", str(ROOT / "deploy" / "runs" / "tiny_lock_cepo.toml"), "--set", "loop.seed=0", *chosen]
    subprocess.run([*alone, "--run-dir", str(tmp_path / "alone")], check=True)
    assert adapter(tmp_path / "s" / "cepo" / "cepo-seed-0") == adapter(tmp_path / "alone")
