"""Runs of the whole system, as a user starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import MappingProxyType

import httpx
import psutil

from cepo.net.environment import child_environment

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "deploy" / "runs" / "tiny_cepo.toml"
TOOLS = ROOT / "deploy" / "runs" / "tiny_tools_cepo.toml"
SMALL = ("loop.steps=6", "sampling.prompts=6", "eval.prompts=8", "eval.every=3", "engine.max_num_seqs=64")
"""Settings of a run that takes seconds once the engines are up."""
SLOW_SECONDS = 60.0
"""Timeout of one call to a service that shares two cores with others."""
NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
DOCUMENTED_KEYS = [
    "step",
    "policy_version",
    "reward/mean",
    "accuracy/train",
    "length/mean",
    "loss/policy",
    "grad_norm",
    "clip/ppo_low",
    "clip/ppo_high",
    "credit/lambda",
    "credit/delta_pos_fraction",
    "credit/delta_neg_fraction",
    "credit/clip_fraction",
    "credit/delta_mean_correct",
    "credit/delta_mean_wrong",
    "credit/wrong_direction_fraction",
    "groups/all_correct",
    "groups/all_wrong",
    "groups/failed",
    "rollout/logp_gap",
    "time/step_seconds",
    "time/rollout_seconds",
    "time/teacher_seconds",
    "time/teacher_exposed_seconds",
    "time/train_seconds",
    "time/publish_to_first_token_seconds",
    "tokens/generated",
    "tokens/trained",
]
"""Keys that every row of `metrics.jsonl` has."""


def command(run_dir: Path, *more: str, settings: tuple[str, ...] = SMALL, file: Path = TINY) -> list[str]:
    chosen = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-m", "cepo", "train", str(file), "--run-dir", str(run_dir), *chosen, *more]


@contextmanager
def started(
    words: Sequence[str], variables: Mapping[str, str] = NO_VARIABLES, log: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Runs a process within the block, and kills it and all that it started at the end.

    Its output is kept for `communicate`, or written to `log`.
    """
    with (
        log.open("w") if log else nullcontext(subprocess.PIPE) as out,
        subprocess.Popen(
            words, cwd=ROOT, env=child_environment(dict(variables)), stdout=out, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Kills a process and all that it started; the process itself first, because it would restart the others."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def run(run_dir: Path, *more: str, **variables: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """A run as a user starts it."""
    return started(command(run_dir, *more), variables)


def rows(run_dir: Path) -> list[dict[str, float]]:
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 400) -> None:
    """Waits for a condition. If the run ends first, fails at once with the output of the run."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"the run ended with {process.returncode}: {process.communicate()[0]}")
        if time.monotonic() > deadline:
            end(process)
            raise AssertionError(f"not within {seconds} s: {process.communicate()[0]}")
        time.sleep(0.02)


def asked(url: str) -> str:
    """The reply of a service, with a timeout that suits a busy machine."""
    return httpx.get(url, timeout=SLOW_SECONDS).text


def pid_of(name: str, run_dir: Path) -> int:
    """Process id of a service of this run; `follower` is the trainer's second process."""
    marker = {"follower": "services.trainer", "redis": "valkey-server"}.get(name, f"services.{name}").encode()
    port = None if name in ("trainer", "follower", "redis") else _grpc_port(name, run_dir)
    redis = json.loads((run_dir / "services.json").read_text())["redis"].rpartition(":")[2].partition("/")[0]
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if marker not in line:
            continue
        ours = {
            "trainer": str(run_dir).encode() in line and b"\0RANK=1\0" not in environment,
            "follower": str(run_dir).encode() in line and b"\0RANK=1\0" in environment,
            "redis": f":{redis}".encode() in line or f"\0{redis}\0".encode() in line,
        }.get(name, f"CEPO_GRPC_PORT={port}\0".encode() in environment and b"-m\0services." in line)
        if ours:
            return int(entry.name)
    raise AssertionError(f"no {name} process of {run_dir}")


def engine_of(pid: int) -> psutil.Process:
    """vLLM's own process behind a rollout service."""
    (engine,) = (p for p in psutil.Process(pid).children(recursive=True) if "EngineCore" in " ".join(p.cmdline()))
    return engine


def kill(name: str, run_dir: Path) -> None:
    os.kill(pid_of(name, run_dir), signal.SIGKILL)


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Pauses a run within the block, by stopping its Redis; the block may kill that Redis."""
    redis = psutil.Process(pid_of("redis", run_dir))
    redis.suspend()
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            redis.resume()


def _grpc_port(name: str, run_dir: Path) -> str:
    return str(json.loads((run_dir / "services.json").read_text())["grpc"][name].rpartition(":")[2])
