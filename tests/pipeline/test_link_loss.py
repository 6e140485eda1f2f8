"""Redis, trainer and workers run on separate hosts (network namespaces); each link fails for ten seconds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cepo.net.environment import child_environment
from cepo.net.settings import Settings
from cepo.run import embedded
from tests.pipeline.link_parts import GROUPS
from tests.pipeline.support import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
OUTAGE_SECONDS = 10.0
START_SECONDS = 200.0
HUB, TRAINER, WORKER = "10.77.0.1", "10.77.0.2", "10.77.0.3"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """A hub with a bridge and two hosts connected to it. Each link can be cut."""

    def __init__(self, prefix: str) -> None:
        self._names = {name: f"{prefix}-{name}" for name in ("hub", "trainer", "worker")}

    def __enter__(self) -> Hosts:
        for name in self._names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        hub = self._names["hub"]
        ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", hub, "addr", "add", f"{HUB}/24", "dev", "bridge")
        ip("-n", hub, "link", "set", "bridge", "up")
        for name, address in (("trainer", TRAINER), ("worker", WORKER)):
            host = self._names[name]
            ip("-n", hub, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", host)
            ip("-n", hub, "link", "set", name, "master", "bridge", "up")
            ip("-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names.values():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def link(self, name: str, state: str) -> None:
        """Sets the link of a host `down` or `up`. While it is down packets are lost, but connections stay open."""
        ip("-n", self._names["hub"], "link", "set", name, state)

    def spawn(self, name: str, command: list[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Starts a process on a host."""
        with log.open("wb") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self._names[name], *command],
                cwd=ROOT,
                env=child_environment(variables),
                stdout=file,
                stderr=file,
            )


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    with ExitStack() as stack:
        made = Hosts(f"cepo{os.getpid()}")
        stack.callback(made.__exit__)
        try:
            made.__enter__()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine does not allow network namespaces: {error.stderr.strip()}")
        yield made


def steps(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def wait_for(count: int, out: Path, processes: dict[str, subprocess.Popen[bytes]], logs: Path) -> None:
    """Waits until `count` steps have ended. Fails with the log of a process that exits before that."""
    deadline = time.monotonic() + START_SECONDS
    while len(steps(out)) < count:
        ended = [name for name, process in processes.items() if process.poll() is not None]
        assert not ended, (logs / f"{ended[0]}.log").read_text()[-3000:]
        assert time.monotonic() < deadline, f"{len(steps(out))} of {count} steps after {START_SECONDS} s"
        time.sleep(0.05)


def test_a_run_survives_ten_seconds_without_redis_and_without_the_trainer(hosts: Hosts, tmp_path: Path) -> None:
    out, processes = tmp_path / "steps.jsonl", {}
    shared = {
        "redis_url": f"redis://{HUB}:6379/0",
        "trainer_address": f"{TRAINER}:7051",
        "token": "secret",
        "exposure": "cleartext",
    }
    common = {**shared, "claim_seconds": 3.0, "concurrency": 8, "threads": 1, "adapter_cache": tmp_path / "adapters"}
    parts = [sys.executable, "-m", "tests.pipeline.link_parts"]
    redis = [str(embedded.program()), "--bind", HUB, "--protected-mode", "no", "--save", "", "--dir", str(tmp_path)]
    planned = {
        "redis": ("hub", redis, {}),
        "trainer": ("trainer", [*parts, "trainer", str(out)], {"host": TRAINER, "grpc_port": 7051}),
        "rollout": ("worker", [*parts, "rollout"], {}),
        "verifier": ("worker", [sys.executable, "-m", "services.verifier"], {}),
    }
    try:
        for name, (host, command, own) in planned.items():
            variables = Settings.model_validate({**common, **own}).to_environment() if name != "redis" else {}
            processes[name] = hosts.spawn(host, command, tmp_path / f"{name}.log", **variables)
            while name == "redis" and "Ready to accept connections" not in (tmp_path / "redis.log").read_text():
                assert processes[name].poll() is None, (tmp_path / "redis.log").read_text()
                time.sleep(0.05)
        wait_for(2, out, processes, tmp_path)
        hosts.link("worker", "down")
        cut = len(steps(out))
        time.sleep(OUTAGE_SECONDS / 2)
        hosts.link("trainer", "down")
        time.sleep(OUTAGE_SECONDS / 2)
        stalled = len(steps(out))
        hosts.link("worker", "up")
        time.sleep(OUTAGE_SECONDS / 2)
        assert len(steps(out)) == stalled <= cut + 1, "steps ended without a link, so the test proves nothing"
        hosts.link("trainer", "up")
        wait_for(stalled + 3, out, processes, tmp_path)
        processes["trainer"].send_signal(signal.SIGTERM)
        assert processes["trainer"].wait(100) == 0, (tmp_path / "trainer.log").read_text()[-3000:]
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    metrics = steps(out)
    assert [row["step"] for row in metrics] == list(range(len(metrics)))
    for row in metrics:
        assert row["groups"] == [f"link/{row['step']}/{i}" for i in range(GROUPS)]
        assert row["kinds"] == ["EvidencedGroup"], "a group was given up"
    assert metrics[-1]["dropped"] == 0, "a group arrived twice"
