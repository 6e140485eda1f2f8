"""docker-compose.yml and docker-compose.tls.yml are valid, and the latter enables mutual TLS everywhere."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cepo.cli.certs import NAMES
from cepo.net.environment import child_environment
from cepo.run.deployment import REDIS_OPTIONS, SPECS, Spec
from tests.unit.deploy.compose import CLEAR, PROFILES, ROOT, TLS, mounts, read, started
from tests.unit.deploy.environment import SECRET, settings_of
from tests.unit.deploy.kustomize import K8S, named, render

FOLDER = "/etc/cepo/certificates"
DOCKER = (
    shutil.which("docker") is not None
    and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    package = find_spec("check_jsonschema")
    assert package is not None
    assert package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0]) / "builtin_schemas" / "vendor"
    compose: dict[str, Any] = json.loads((folder / "compose-spec.json").read_text())
    return compose


@pytest.mark.parametrize("name", TLS)
def test_the_files_fit_their_schema(name: str, schema: dict[str, Any]) -> None:
    file = yaml.safe_load((ROOT / name).read_text())
    jsonschema.validate(file, schema)
    file["services"]["redis"]["restrat"] = "always"
    with pytest.raises(jsonschema.ValidationError, match="restrat"):
        jsonschema.validate(file, schema)


@pytest.mark.skipif(not DOCKER, reason="needs docker compose, to compare it with our reader")
@pytest.mark.parametrize("files", [CLEAR, TLS], ids=["clear", "tls"])
@pytest.mark.parametrize("profile", [*PROFILES, "observe"])
def test_docker_compose_reads_what_the_tests_see(profile: str, files: tuple[str, ...]) -> None:
    chosen = [word for file in files for word in ("--file", str(ROOT / file))]
    command = ["docker", "compose", *chosen, "--profile", profile, "config", "--format", "json"]
    variables = dict.fromkeys(("CEPO_REDIS_PASSWORD", "CEPO_TOKEN", "CEPO_CERTIFICATES_GROUP"), SECRET)
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=child_environment(variables))
    theirs, ours = json.loads(printed.stdout)["services"], read(files)
    assert set(theirs) == {name for name, service in ours.items() if profile in service.get("profiles", [profile])}
    for name, service in theirs.items():
        assert service["command"] == ours[name].get("command")
        assert service["entrypoint"] == ours[name].get("entrypoint")
        assert service.get("environment", {}) == ours[name].get("environment", {})
        assert service.get("group_add") == ours[name].get("group_add")
        assert {volume["target"] for volume in service.get("volumes", ())} == set(mounts(ours[name]))


def test_nothing_is_copied_into_a_container_that_cannot_be_written() -> None:
    """Compose copies secrets and configs; a read-only container rejects them (github.com/docker/compose/pull/12531)."""
    for service in read(TLS).values():
        assert not (service.get("read_only") and {"secrets", "configs"} & set(service))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_compiled_kernels_can_be_loaded_from_where_they_are_written(spec: Spec, profile: str) -> None:
    """Docker mounts a tmpfs with noexec by default (https://github.com/docker/docs/issues/8138)."""
    (mounted,) = started(read(CLEAR), spec.name, profile)["tmpfs"]
    assert mounted == "/tmp:mode=1777,exec"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_with_tls_every_service_has_a_certificate_of_its_own(
    spec: Spec, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear, service = (started(read(files), spec.name, profile) for files in (CLEAR, TLS))
    known_as = service.get("networks", {}).get("default", {}).get("aliases", [spec.name])
    assert known_as == [spec.name]  # the name in its certificate
    assert mounts(service) == mounts(clear) | {FOLDER: f"./certificates/{spec.name}"}
    assert spec.name in NAMES
    settings = settings_of(service["environment"], monkeypatch)
    assert (settings.certificates, settings.exposure, settings.mutual_tls) == (FOLDER, "secure", True)
    assert settings.redis_url == f"rediss://:{SECRET}@redis:6379/0"
    changed = {"certificates": "", "exposure": "cleartext", "redis_url": f"redis://:{SECRET}@redis:6379/0"}
    assert settings.model_copy(update=changed) == settings_of(clear["environment"], monkeypatch)
    for both in (clear, service):
        for key in ("environment", "volumes", "group_add"):
            both.pop(key, None)
    assert service == clear


@pytest.mark.parametrize("profile", PROFILES)
def test_one_container_downloads_the_model_before_an_engine_starts(profile: str) -> None:
    services = read(CLEAR)
    model = started(services, "model", profile)
    (key,) = [name for name, service in services.items() if service is model]
    assert model["restart"].startswith("on-failure")
    for name in ("rollout", "teacher", "trainer"):
        engine = started(services, name, profile)
        assert engine["depends_on"][key] == {"condition": "service_completed_successfully"}
        assert model["command"] == ["python", "-m", "cepo.cli.download", engine["command"][5]]
        assert mounts(model).items() <= mounts(engine).items()
        assert mounts(engine)["/models"] == "models"
        assert engine["environment"]["HF_TOKEN"] == model["environment"]["HF_TOKEN"]


@pytest.mark.parametrize("profile", PROFILES)
def test_on_a_shared_gpu_the_others_wait_until_vllm_has_its_memory(profile: str) -> None:
    for name in ("teacher", "trainer"):
        waits = started(read(CLEAR), name, profile)["depends_on"]
        assert ("rollout" in waits) == (profile == "gpu")
        assert waits.get("rollout", {"condition": "service_healthy"}) == {"condition": "service_healthy"}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_container_waits_for_containers_of_its_own_profile(profile: str) -> None:
    """Compose refuses a dependency that the profile does not start."""
    services = read(CLEAR)
    chosen = {name for name, service in services.items() if profile in service.get("profiles", [profile])}
    for name in chosen:
        assert set(services[name].get("depends_on", ())) <= chosen, name


def test_redis_with_tls_is_that_of_kubernetes() -> None:
    service = read(TLS)["redis"]
    words = shlex.split(service["command"][-1])
    assert set(REDIS_OPTIONS) <= set(words)
    assert words[words.index("--port") + 1] == "0"
    patch = yaml.safe_load((K8S / "components" / "tls" / "redis.yaml").read_text())
    (command,) = [entry["value"] for entry in patch if entry["path"].endswith("containers/0/command")]
    assert [word.replace("$$", "$") for word in service["command"]] == command
    (ready,) = [entry["value"] for entry in patch if "readinessProbe" in entry["path"]]
    assert service["healthcheck"]["test"] == ["CMD-SHELL", ready[-1]]
    assert service["healthcheck"]["retries"] == read(CLEAR)["redis"]["healthcheck"]["retries"]
    (container,) = named(render(K8S / "base"), "StatefulSet", "redis")["spec"]["template"]["spec"]["containers"]
    assert read(CLEAR)["redis"]["healthcheck"]["test"][-1] == container["readinessProbe"]["exec"]["command"][-1]


def test_prometheus_with_tls_is_the_same_and_checks_names() -> None:
    folder = ROOT / "deploy" / "prometheus"
    clear, tls = (yaml.safe_load((folder / name).read_text()) for name in ("prometheus.yml", "tls.yml"))
    assert mounts(read(TLS)["prometheus"])["/etc/prometheus/prometheus.yml"] == "./deploy/prometheus/tls.yml"
    assert mounts(read(TLS)["prometheus"])[FOLDER] == "./certificates/client"
    jobs, (one,) = tls.pop("scrape_configs"), clear.pop("scrape_configs")
    assert clear == tls
    assert [job["dns_sd_configs"][0] for job in jobs] == one["dns_sd_configs"]
    for job in jobs:
        (name,) = job["dns_sd_configs"][0]["names"]
        assert job["job_name"] == job["tls_config"].pop("server_name") == name
        assert job["tls_config"] == {
            "ca_file": f"{FOLDER}/ca.crt",
            "cert_file": f"{FOLDER}/tls.crt",
            "key_file": f"{FOLDER}/tls.key",
        }
        assert (job["scheme"], job["authorization"]) == ("https", one["authorization"])
        assert job["relabel_configs"] == [
            {"target_label": "job", "replacement": one["job_name"]},
            *one["relabel_configs"],
        ]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
@pytest.mark.parametrize(
    "check", ["rules alerts.yml", "config --syntax-only prometheus.yml", "config --syntax-only tls.yml"]
)
def test_prometheus_takes_its_files(check: str) -> None:
    command = ["promtool", "check", *check.split()]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "deploy" / "prometheus")
    assert printed.returncode == 0, printed.stderr
    assert "SUCCESS" in printed.stdout
