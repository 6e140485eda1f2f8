"""Launcher, docker-compose.yml and Kubernetes start the same commands with the same ports and environment."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cepo.cli.services import ENGINES
from cepo.net.settings import Settings
from cepo.run.deployment import REDIS_OPTIONS, SPECS, Spec, environment
from cepo.run.folder import RunDir
from cepo.run.local import Stack
from tests.helpers.factories import make_config
from tests.unit.deploy.compose import CLEAR, PROFILES, ROOT, read, started
from tests.unit.deploy.environment import SECRET, settings_of
from tests.unit.deploy.kustomize import K8S, named, render

ADDRESSES = {"CEPO_REDIS_URL", "CEPO_HOST", "CEPO_EXPOSURE", "CEPO_GRPC_PORT", "CEPO_HTTP_PORT"} | {
    "CEPO_TRAINER_ADDRESS",
    "CEPO_VERIFIER_ADDRESS",
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read(CLEAR)


def in_kubernetes(name: str, overlay: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The container of a service and its environment variables, with SECRET in place of secrets."""
    objects = render(K8S / "overlays" / overlay)
    item = named(objects, "Job" if name == "trainer" else "Deployment", name)
    (container,) = item["spec"]["template"]["spec"]["containers"]
    variables = dict(named(objects, "ConfigMap", "cepo-environment")["data"])
    assert container["envFrom"] == [{"configMapRef": {"name": "cepo-environment"}}]
    variables |= {entry["name"]: entry.get("value", SECRET) for entry in container["env"]}
    return container, {key: value.replace("$(REDIS_PASSWORD)", SECRET) for key, value in variables.items()}


def without_addresses(variables: dict[str, str]) -> dict[str, str]:
    machine = {"CEPO_MACHINE", "CEPO_TOKEN", "CEPO_TOKEN_FILE", "CEPO_THREADS", "OMP_NUM_THREADS"}
    return {key: value for key, value in variables.items() if key not in ADDRESSES | machine}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_compose_starts_what_the_table_says(
    spec: Spec, profile: str, compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = started(compose, spec.name, profile)
    run_file = "deploy/runs/tiny_cepo.toml" if profile == "cpu" else "deploy/runs/gsm8k_cepo.toml"
    folder = ["--run-dir", "/runs/run"] if spec.name == "trainer" else []
    alone = ["--set", "engine.gpu_memory_utilization=0.85"] if (spec.name, profile) == ("rollout", "multi-gpu") else []
    assert service["command"] == spec.container_command(run_file, *folder, *alone)
    assert (ROOT / run_file).is_file()
    settings = settings_of(service["environment"], monkeypatch)
    assert (settings.grpc_port, settings.http_port) == (spec.grpc_port, spec.http_port)
    assert settings.trainer_address == f"trainer:{SPECS['trainer'].grpc_port}"
    assert settings.redis_url == f"redis://:{SECRET}@redis:6379/0"
    assert ("deploy" in service) == (profile != "cpu" and spec.name != "verifier")
    assert service["depends_on"]["redis"] == {"condition": "service_healthy"}


@pytest.mark.parametrize("overlay", ["cpu", "single-gpu", "multi-node"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_kubernetes_starts_what_the_table_says(spec: Spec, overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    container, variables = in_kubernetes(spec.name, overlay)
    folder = ["--run-dir", "/runs/run"] if spec.name == "trainer" else []
    alone = ["--set", "engine.gpu_memory_utilization=0.85"] if (spec.name, overlay) == ("rollout", "multi-node") else []
    assert container["command"] == spec.container_command("/etc/cepo/run/run.toml", *folder, *alone)
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "grpc": spec.grpc_port,
        "http": spec.http_port,
    }
    for probe in ("startupProbe", "readinessProbe"):
        if (spec.name, overlay) == ("trainer", "multi-node"):
            assert container[probe]["exec"]["command"] == ["python", "-m", "cepo.healthcheck"]
        else:
            assert container[probe]["grpc"] == {"port": spec.grpc_port}
    settings = settings_of(variables, monkeypatch)
    assert (settings.grpc_port, settings.http_port) == (spec.grpc_port, spec.http_port)
    assert settings.trainer_address == f"trainer:{SPECS['trainer'].grpc_port}"
    assert settings.redis_url == f"redis://:{SECRET}@redis:6379/0"


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_the_processes_are_those_of_the_launcher(
    spec: Spec, compose: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher starts a process with the same command and environment as a container, except for addresses."""
    config = make_config()
    child = Stack(config, RunDir(tmp_path), "redis://127.0.0.1:1/0").children[spec.name]
    folder = [str(tmp_path)] if spec.name == "trainer" else []
    assert child.command == [sys.executable, *spec.command(*folder)]
    for variables in (started(compose, spec.name, "cpu")["environment"], in_kubernetes(spec.name, "cpu")[1]):
        settings = settings_of(variables, monkeypatch)
        if spec.follows_run:
            settings = spec.settings(config, settings)
            assert without_addresses(environment(settings, spec.name)) == without_addresses(child.environment)
        else:
            assert settings.concurrency == spec.concurrency == int(child.environment["CEPO_CONCURRENCY"])


def test_on_a_gpu_the_passes_of_teacher_and_trainer_get_expandable_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    key, cuda = "PYTORCH_ALLOC_CONF", Settings(device="cuda")
    monkeypatch.delenv(key, raising=False)
    given = {name: environment(cuda, name).get(key) for name in SPECS}
    assert given == dict.fromkeys(SPECS) | dict.fromkeys(("teacher", "trainer"), "expandable_segments:True")
    assert key not in environment(Settings(), "trainer")
    monkeypatch.setenv(key, "max_split_size_mb:64")
    assert environment(cuda, "trainer")[key] == "max_split_size_mb:64"


def test_the_planned_cache_reaches_the_rollout_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "CEPO_KV_CACHE_MEMORY_BYTES"
    stack = Stack(make_config("engine.device=cuda"), RunDir(tmp_path), kv_cache_bytes=5)
    assert stack.children["rollout"].environment[key] == "5"
    monkeypatch.setenv(key, "7")
    assert Stack(make_config(), RunDir(tmp_path), kv_cache_bytes=5).children["rollout"].environment[key] == "7"


def test_a_deterministic_runs_teacher_scores_a_group_at_a_time() -> None:
    for spec in SPECS.values():
        held = [
            spec.settings(make_config(f"loop.deterministic={value}"), Settings()).concurrency
            for value in ("false", "true")
        ]
        assert held == [spec.concurrency, 1 if spec.name == "teacher" else spec.concurrency]


def test_services_without_a_trainer_have_the_tables_ports(tmp_path: Path) -> None:
    stack = Stack(make_config(), RunDir(tmp_path), services=ENGINES, own_ports=False)
    assert set(stack.children) == {"redis", "rollout", "verifier", "teacher"}
    assert stack.grpc == {spec.name: f"127.0.0.1:{spec.grpc_port}" for spec in SPECS.values()}
    assert stack.http["verifier"] == f"http://127.0.0.1:{SPECS['verifier'].http_port}"


def test_prometheus_scrapes_every_service() -> None:
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0]
    ports = {entry["names"][0]: entry["port"] for entry in scraped["dns_sd_configs"]}
    assert ports == {spec.name: spec.http_port for spec in SPECS.values()}


def test_a_trainer_is_started_again_as_often_and_has_as_long_to_save(compose: dict[str, Any]) -> None:
    job = named(render(K8S / "base"), "Job", "trainer")["spec"]
    nodes = named(render(K8S / "overlays" / "multi-node"), "Job", "trainer")["spec"]
    assert (nodes["backoffLimitPerIndex"], nodes["maxFailedIndexes"]) == (job["backoffLimit"], 0)
    assert "backoffLimit" not in nodes
    grace = nodes["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace - 30 <= int(in_kubernetes("trainer", "multi-node")[1]["PET_SHUTDOWN_TIMEOUT"]) < grace - 10
    for profile in PROFILES:
        service = started(compose, "trainer", profile)
        assert service["restart"] == f"on-failure:{job['backoffLimit']}"
        minutes = int(service["stop_grace_period"].removesuffix("m"))
        assert minutes * 60 == job["template"]["spec"]["terminationGracePeriodSeconds"]


def test_every_redis_has_the_tables_options(compose: dict[str, Any], tmp_path: Path) -> None:
    (container,) = named(render(K8S / "base"), "StatefulSet", "redis")["spec"]["template"]["spec"]["containers"]
    launched = Stack(make_config(), RunDir(tmp_path)).children["redis"].command
    assert launched[-len(REDIS_OPTIONS) :] == list(REDIS_OPTIONS)
    for command in (compose["redis"]["command"], container["command"]):
        assert set(REDIS_OPTIONS) <= set(shlex.split(command[-1]))
