"""`cepo up` and `cepo down` with real engines: the services answer while they are up, and no process is left."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.helpers.exploring import BRIEF, LENIENT, explore
from tests.pipeline.support import SLOW_SECONDS, TINY, asked, engine_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def cepo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cepo", *arguments], cwd=folder, capture_output=True, text=True)


def explored(folder: Path, name: str, address: str) -> str:
    (folder / name).mkdir()
    return explore(address, "", folder / name, *BRIEF, *(LENIENT if name == "rollout" else ()), examples=5)


def end_engine(rollout: str) -> None:
    """Kills the vLLM engine process of a rollout service."""
    port = int(rollout.rpartition(":")[2])
    (listening,) = (c.pid for c in psutil.net_connections("tcp4") if c.laddr.port == port and c.status == "LISTEN")
    engine_of(listening).kill()


def answers_while_ending(rollout: str) -> list[str]:
    """The replies of `/readyz` until the service is gone; no other request is sent."""
    said, deadline = [], time.monotonic() + 100
    while time.monotonic() < deadline:
        try:
            said.append(asked(f"{rollout}/readyz"))
        except httpx.TransportError:
            return said
        time.sleep(0.1)
    raise AssertionError("it continues without its engine")


def test_services_come_up_answer_and_go_down(tmp_path: Path) -> None:
    up = cepo(tmp_path, "up", str(TINY))
    try:
        assert up.returncode == 0, up.stderr
        addresses = json.loads((tmp_path / "runs" / "services" / "services.json").read_text())["http"]
        assert set(addresses) == {"rollout", "verifier", "teacher"}
        assert all(address in up.stdout for address in addresses.values())
        row = {"response": "so \\boxed{7}", "answer": "7"}
        verdict = httpx.post(f"{addresses['verifier']}/v1/verify", json=row, timeout=SLOW_SECONDS).json()
        assert verdict["outcome"] == "correct"
        with ThreadPoolExecutor() as pool:
            for found in pool.map(lambda service: explored(tmp_path, *service), addresses.items()):
                assert not found, found
        again = cepo(tmp_path, "up", str(TINY))
        assert again.returncode == 2
        assert "cepo down" in again.stderr
        end_engine(addresses["rollout"])
        said = answers_while_ending(addresses["rollout"])
        assert said == sorted(said, reverse=True), "ready, then not ready, never ready again"
    finally:
        down = cepo(tmp_path, "down")
    assert down.returncode == 0, down.stderr
    for address in addresses.values():
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/healthz")
