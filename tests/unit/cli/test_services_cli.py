"""`cepo up`, `down` and `serve`, and the health check of containers."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cepo.cli import main, services
from cepo.healthcheck import ready
from cepo.net.environment import child_environment
from cepo.net.settings import Settings
from cepo.net.torchrun import Place
from tests.helpers.factories import RUNS
from tests.helpers.processes import RedisServer

TINY = str(RUNS / "tiny_cepo.toml")


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a service whose /readyz answers with the status of the parameter."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response({"/readyz": request.param, "/healthz": 200}.get(self.path, 404))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    serving = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield serving.server_port
    serving.shutdown()
    thread.join()
    serving.server_close()


@pytest.mark.parametrize("server", [503], indirect=True)
def test_a_pod_of_a_trainer_is_asked_what_it_can_answer(server: int) -> None:
    """Pod 0 serves HTTP: it is alive and not ready. The other pods serve nothing and are healthy while they live."""
    nodes = {"PET_NNODES": "2", "PET_MASTER_ADDR": "trainer-0"}

    def probe(rank: int, *path: str) -> int:
        variables = child_environment(nodes | {"PET_NODE_RANK": str(rank), "CEPO_HTTP_PORT": str(server)})
        return subprocess.run([sys.executable, "-m", "cepo.healthcheck", *path], env=variables).returncode

    assert [probe(0), probe(0, "/healthz"), probe(1), probe(1, "/healthz")] == [1, 0, 0, 0]


@pytest.mark.parametrize(("server", "healthy"), [(200, True), (503, False)], indirect=["server"])
def test_a_container_is_healthy_when_its_service_is_ready(server: int, healthy: bool) -> None:
    assert ready(Settings(http_port=server)) is healthy


def test_a_container_whose_service_does_not_listen_is_not_healthy(free_port: Callable[[], int]) -> None:
    assert ready(Settings(http_port=free_port())) is False


def test_down_without_services_says_how_to_start_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(services, "_elsewhere", list)  # other services of this machine are not this test's
    assert main(["down"]) == 2
    assert capsys.readouterr().err == "cepo: no services run here; start them with: cepo up RUN.toml\n"


def test_down_names_the_folder_in_which_services_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "my other"
    other.mkdir()
    script = "print(flush=True); input()"
    words = [sys.executable, "-c", script, "cepo", "up", "a.toml", "--supervise"]
    supervisor = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=other)
    try:
        assert supervisor.stdout is not None
        supervisor.stdout.readline()  # /proc shows its arguments only once its program runs
        monkeypatch.chdir(tmp_path)
        assert main(["down"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("cepo: no services run here; stop those of another folder with: ")
        assert f"cd '{other}' && cepo down" in said
        assert supervisor.poll() is None
    finally:
        supervisor.communicate()


def test_down_leaves_a_process_alone_that_took_over_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (tmp_path / "runs" / "services").mkdir(parents=True)
        (tmp_path / "runs" / "services" / "supervisor.pid").write_text(str(stranger.pid))
        assert main(["down"]) == 2
        assert "no services run here" in capsys.readouterr().err
        assert stranger.poll() is None
    finally:
        stranger.communicate()


def test_the_trainer_of_a_container_needs_a_folder_that_stays(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "trainer", TINY]) == 2
    assert "--run-dir" in capsys.readouterr().err


def test_a_trainer_inside_torchrun_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in Place(0, 0, 2).to_environment().items():
        monkeypatch.setenv(name, value)
    assert main(["serve", "trainer", TINY, "--run-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "cepo: RANK is set: give torchrun `-m services.trainer RUN_DIR`; or set PET_NNODES, and cepo serve trainer "
        "starts torchrun itself\n"
    )


def test_a_mistake_ends_the_first_of_several_machines_before_torchrun_and_once_there_is_a_redis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun would exit with 1, and Kubernetes would retry. The run is checked only after Redis answers."""
    redis = RedisServer(tmp_path)
    for name, value in {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "trainer-0"}.items():
        monkeypatch.setenv(f"PET_{name}", value)
    monkeypatch.setenv("CEPO_REDIS_URL", redis.url)
    later = threading.Timer(1.0, redis.start)
    later.start()
    try:
        absent = ["--set", "data.train=./absent.jsonl"]
        assert main(["serve", "trainer", TINY, "--run-dir", str(tmp_path / "run"), *absent]) == 2
    finally:
        later.join()
        redis.kill()
    assert "absent.jsonl" in capsys.readouterr().err


def test_a_teacher_of_a_run_that_has_it_in_the_trainer_is_not_started(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "teacher", TINY, "--set", "engine.teacher=colocated"]) == 2
    assert "the trainer does the teacher's work; start no teacher" in capsys.readouterr().err


def test_serve_becomes_the_service_with_the_runs_settings(free_port: Callable[[], int]) -> None:
    """Without a Redis the teacher exits before it loads a model, with a line that names it."""
    variables = {"CEPO_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "cepo", "serve", "teacher", TINY]
    ended = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=RUNS.parents[1])
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("cepo teacher: Redis at 127.0.0.1:")
