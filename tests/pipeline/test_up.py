"""`cepo up` and `cepo down` with real engines: the services answer while they are up, and nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.pipeline.support import TINY

pytestmark = pytest.mark.slow


def cepo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cepo", *arguments], cwd=folder, capture_output=True, text=True)


def test_services_come_up_answer_and_go_down(tmp_path: Path) -> None:
    up = cepo(tmp_path, "up", str(TINY))
    try:
        assert up.returncode == 0, up.stderr
        addresses = json.loads((tmp_path / "runs" / "services" / "services.json").read_text())["http"]
        assert set(addresses) == {"rollout", "verifier", "teacher"}
        assert all(address in up.stdout for address in addresses.values())
        row = {"response": "so \\boxed{7}", "answer": "7"}
        assert httpx.post(f"{addresses['verifier']}/v1/verify", json=row).json()["outcome"] == "correct"
        again = cepo(tmp_path, "up", str(TINY))
        assert again.returncode == 2
        assert "cepo down" in again.stderr
    finally:
        down = cepo(tmp_path, "down")
    assert down.returncode == 0, down.stderr
    for address in addresses.values():
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/healthz")
