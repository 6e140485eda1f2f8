"""The batch scripts of deploy/slurm, with stand-ins for Slurm's commands and for the project's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cepo.net.environment import child_environment
from cepo.run.deployment import REDIS_OPTIONS, SPECS
from tests.unit.deploy.kustomize import K8S

SLURM = K8S.parent / "slurm"
RECORD = f"""#!{sys.executable}
import json, os, sys
environment = {{key: value for key, value in os.environ.items() if key.startswith(("CEPO_", "PET_"))}}
with open("calls.jsonl", "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], environment]) + "\\n")
"""
HOSTS = RECORD + 'if sys.argv[1] == "show":\n    print("first", "second", "third", sep="\\n")\n'
STEP = (
    RECORD
    + """if any("serve trainer" in word for word in sys.argv):
    while open("calls.jsonl").read().count('["srun"') < 5:
        pass
    sys.exit(int(os.environ["STATUS"]))
"""
)
TRAINS = "#!/bin/sh\ntrap 'echo saved; exit 143' TERM\necho cepo \"$@\" >>calls\nwhile :; do sleep 0.05; done\n"


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder for commands that precede others on the PATH."""
    (tmp_path / "bin").mkdir()
    return tmp_path


def put(folder: Path, **programs: str) -> None:
    for name, text in programs.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)


def submitted(script: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    slurm = {"SLURM_JOB_NAME": "cepo", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "nodes", "SLURM_GPUS_ON_NODE": "2"}
    path = {"PATH": f"{folder / 'bin'}:{os.defpath}", "RUN": "run.toml", "RUN_DIR": "mine"}
    environment = child_environment(slurm | path | variables)
    return subprocess.Popen(["bash", SLURM / script], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def calls(folder: Path) -> list[list]:
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("known", "started"), [(False, "cepo train run.toml --run-dir mine"), (True, "cepo resume mine")]
)
def test_a_job_near_its_limit_saves_its_step_and_is_queued_again(commands: Path, known: bool, started: str) -> None:
    put(commands, cepo=TRAINS, python="#!/bin/sh\n", scontrol=RECORD)
    if known:
        (commands / "mine").mkdir()
        (commands / "mine" / "config.toml").touch()
    job = submitted("one-node.sbatch", commands)
    while not (commands / "calls").exists():
        time.sleep(0.02)
    assert (commands / "calls").read_text() == f"{started}\n"
    job.send_signal(signal.SIGTERM)
    assert job.communicate(timeout=30)[0] == "saved\n"
    assert job.returncode == 143
    assert calls(commands)[0][:2] == ["scontrol", ["requeue", "7"]]


def test_a_job_that_ends_is_not_queued_again(commands: Path) -> None:
    put(commands, cepo="#!/bin/sh\nexit 2\n", python="#!/bin/sh\n", scontrol=RECORD)
    job = submitted("one-node.sbatch", commands)
    job.communicate(timeout=30)
    assert job.returncode == 2
    assert not (commands / "calls.jsonl").exists()


@pytest.mark.parametrize(("status", "queued"), [(0, 0), (1, 1), (2, 0)])
def test_services_of_several_nodes_are_those_of_the_table(commands: Path, status: int, queued: int) -> None:
    put(commands, srun=STEP, scontrol=HOSTS, python="#!/bin/sh\n", openssl="#!/bin/sh\necho secret\n")
    job = submitted("several-nodes.sbatch", commands, STATUS=str(status))
    job.communicate(timeout=30)
    steps = {}
    for name, words, environment in calls(commands):
        if name == "srun":
            at = next(place for place, word in enumerate(words) if not word.startswith("-"))
            options = dict(word.removeprefix("--").split("=", 1) for word in words[:at] if "=" in word)
            steps[Path(options["output"]).stem.partition("-")[0]] = (options, words[at:], environment)
    assert set(steps) == {"redis", *SPECS}
    for spec in SPECS.values():
        options, words, environment = steps[spec.name]
        assert environment["CEPO_REDIS_URL"] == "redis://:secret@first:6379/0"
        assert (environment["CEPO_GRPC_PORT"], environment["CEPO_HTTP_PORT"]) == (
            str(spec.grpc_port),
            str(spec.http_port),
        )
        assert environment["CEPO_TRAINER_ADDRESS"] == f"second:{SPECS['trainer'].grpc_port}"
        assert environment["CEPO_VERIFIER_ADDRESS"] == f"first:{SPECS['verifier'].grpc_port}"
        if spec.name != "trainer":
            assert options["nodelist"] == "first"
            more = ["--set", "engine.gpu_memory_utilization=0.85"] if spec.name == "rollout" else []
            assert words == spec.container_command("run.toml", *more)
    assert steps["verifier"][2]["CEPO_CONCURRENCY"] == str(SPECS["verifier"].concurrency)
    assert set(REDIS_OPTIONS) - {""} <= set(steps["redis"][1][2].split())
    options, words, environment = steps["trainer"]
    assert (options["nodelist"], options["nodes"]) == ("second,third", "2")
    assert environment["PET_NNODES"] == environment["PET_NPROC_PER_NODE"] == "2"
    assert environment["PET_MASTER_ADDR"] == "second"
    assert words[2] == 'PET_NODE_RANK=$SLURM_PROCID exec python -m cepo serve trainer "$0" --run-dir "$1"'
    assert words[3:] == ["run.toml", "mine"]
    assert sum(words[0] == "requeue" for name, words, _ in calls(commands) if name == "scontrol") == queued
