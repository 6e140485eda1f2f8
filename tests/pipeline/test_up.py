"""`cepo up` and `cepo down` with real engines: the services answer while they are up, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.exploring import BRIEF, LENIENT, explore
from tests.pipeline.support import TINY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def cepo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cepo", *arguments], cwd=folder, capture_output=True, text=True)


def explored(folder: Path, name: str, address: str) -> str:
    (folder / name).mkdir()
    return explore(address, "", folder / name, *BRIEF, *(LENIENT if name == "rollout" else ()), examples=5)


def end_engine(rollout: str) -> None:
    """Kills vLLM's own process behind a rollout service."""
    port = int(rollout.rpartition(":")[2])
    (listening,) = (c.pid for c in psutil.net_connections("tcp4") if c.laddr.port == port and c.status == "LISTEN")
    (engine,) = (p for p in psutil.Process(listening).children(recursive=True) if "EngineCore" in " ".join(p.cmdline()))
    engine.kill()


def answers_while_ending(rollout: str) -> list[str]:
    """What `/readyz` says from two seconds on after nobody asked for anything, until the service is gone."""
    time.sleep(2)
    said = []
    with contextlib.suppress(httpx.TransportError):
        for _ in range(40):
            said.append(httpx.get(f"{rollout}/readyz").text)
            time.sleep(0.1)
    return said


def test_services_come_up_answer_and_go_down(tmp_path: Path) -> None:
    up = cepo(tmp_path, "up", str(TINY))
    try:
        assert up.returncode == 0, up.stderr
        addresses = json.loads((tmp_path / "runs" / "services" / "services.json").read_text())["http"]
        assert set(addresses) == {"rollout", "verifier", "teacher"}
        assert all(address in up.stdout for address in addresses.values())
        row = {"response": "so \\boxed{7}", "answer": "7"}
        assert httpx.post(f"{addresses['verifier']}/v1/verify", json=row).json()["outcome"] == "correct"
        with ThreadPoolExecutor() as pool:
            for found in pool.map(lambda service: explored(tmp_path, *service), addresses.items()):
                assert not found, found
        again = cepo(tmp_path, "up", str(TINY))
        assert again.returncode == 2
        assert "cepo down" in again.stderr
        end_engine(addresses["rollout"])
        assert "ready" not in answers_while_ending(addresses["rollout"])
    finally:
        down = cepo(tmp_path, "down")
    assert down.returncode == 0, down.stderr
    for address in addresses.values():
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/healthz")
