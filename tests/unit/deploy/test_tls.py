"""The component `tls` enables mutual TLS between all pods."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cepo.healthcheck import TIMEOUT_SECONDS
from cepo.run.deployment import REDIS_OPTIONS, SPECS
from tests.unit.deploy.kustomize import K8S, Object, named, render
from tests.unit.deploy.test_manifests import validate

FOLDER = "/etc/cepo/certificates"


@pytest.fixture(scope="module", params=["cpu", "single-gpu", "multi-node"])
def overlay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Object]]:
    """A user's overlay on top of a shipped one, with the component `tls`."""
    folder = tmp_path_factory.mktemp("own") / "deploy"
    shutil.copytree(K8S.parent, folder)  # the monitoring component uses files outside k8s
    own = folder / K8S.name / "overlays" / f"own-{request.param}"
    own.mkdir()
    lines = {"resources": [f"../{request.param}"], "components": ["../../components/tls"]}
    kind = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (own / "kustomization.yaml").write_text(yaml.safe_dump(kind | lines))
    return own, render(own)


def pod_of(objects: list[Object], name: str) -> dict[str, Any]:
    kind = {"trainer": "Job", "redis": "StatefulSet"}.get(name, "Deployment")
    return named(objects, kind, name)["spec"]["template"]["spec"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, to compare it with our renderer")
def test_kubectl_renders_what_the_tests_see(overlay: tuple[Path, list[Object]]) -> None:
    rendered = subprocess.run(["kubectl", "kustomize", overlay[0]], capture_output=True, text=True, check=True).stdout
    for name in (*SPECS, "redis"):
        assert pod_of(list(yaml.safe_load_all(rendered)), name) == pod_of(overlay[1], name)


def test_every_service_has_a_certificate_of_its_own_and_asks_for_one(overlay: tuple[Path, list[Object]]) -> None:
    for name in (*SPECS, "redis"):
        pod = pod_of(overlay[1], name)
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "certificates"]
        assert volume["secret"]["secretName"] == f"cepo-certificates-{name}"
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts["certificates"] == FOLDER
    for name in SPECS:
        (container,) = pod_of(overlay[1], name)["containers"]
        variables = {entry["name"]: entry.get("value", "") for entry in container["env"]}
        assert len(variables) == len(container["env"])  # no variable is set twice
        assert (variables["CEPO_CERTIFICATES"], variables["CEPO_EXPOSURE"]) == (FOLDER, "secure")
        assert variables["CEPO_REDIS_URL"].startswith("rediss://")
        for probe in ("startupProbe", "readinessProbe"):
            assert container[probe]["exec"]["command"] == ["python", "-m", "cepo.healthcheck"]
            assert container[probe]["timeoutSeconds"] > TIMEOUT_SECONDS
        assert container["livenessProbe"]["exec"]["command"] == ["python", "-m", "cepo.healthcheck", "/healthz"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert not {"grpc", "httpGet", "tcpSocket"} & container[probe].keys()


def test_redis_listens_with_tls_alone(overlay: tuple[Path, list[Object]]) -> None:
    (container,) = pod_of(overlay[1], "redis")["containers"]
    words = shlex.split(container["command"][-1])
    assert set(REDIS_OPTIONS) <= set(words)
    assert words[words.index("--port") + 1] == "0"
    assert words[words.index("--tls-port") + 1] == "6379"


def test_the_objects_fit_their_schema(overlay: tuple[Path, list[Object]]) -> None:
    assert len(overlay[1]) >= 20
    for item in overlay[1]:
        validate(item)


def test_prometheus_and_keda_come_with_the_clients_certificate(overlay: tuple[Path, list[Object]]) -> None:
    client = "cepo-certificates-client"
    monitors = [item for item in overlay[1] if item["kind"] == "ServiceMonitor"]
    assert len(monitors) == (0 if overlay[0].name == "own-cpu" else len(SPECS))
    for item in monitors:
        (endpoint,) = item["spec"]["endpoints"]
        assert endpoint["scheme"] == "https"
        assert endpoint["tlsConfig"] == {
            "ca": {"secret": {"name": client, "key": "ca.crt"}},
            "cert": {"secret": {"name": client, "key": "tls.crt"}},
            "keySecret": {"name": client, "key": "tls.key"},
            "serverName": item["metadata"]["name"],  # the name that `cepo certs` writes into the certificate
        }
    scaled = [item for item in overlay[1] if item["kind"] == "ScaledObject"]
    assert all(item["spec"]["triggers"][0]["metadata"]["enableTLS"] == "true" for item in scaled)
    for item in (item for item in overlay[1] if item["kind"] == "TriggerAuthentication"):
        secrets = {entry["parameter"]: (entry["name"], entry["key"]) for entry in item["spec"]["secretTargetRef"]}
        assert secrets.pop("password") == ("cepo-redis", "password")
        assert secrets == {"ca": (client, "ca.crt"), "cert": (client, "tls.crt"), "key": (client, "tls.key")}
