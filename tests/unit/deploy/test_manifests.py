"""The rendered manifests are valid and restricted, and every object that they refer to exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cepo.messages.groups import Stage
from cepo.run.deployment import SPECS
from cepo.run.file import load
from cepo.service.bus import stream_of
from tests.unit.deploy.kustomize import CUSTOM, K8S, Object, named, render

OVERLAYS = ("cpu", "single-gpu", "multi-node")
OLDEST, KUBERNETES = "1.30", "1.34"
"""The oldest version that deploy/README.md promises, and the version of the other tests."""
CRDS = Path(__file__).parent / "crds"
README = K8S.parent / "README.md"


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> tuple[str, list[Object]]:
    return request.param, render(K8S / "overlays" / request.param)


@pytest.fixture(params=["overlay", "readme"])
def nodes_and_gpus(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[int, int, list[Object]]:
    """Number of trainer nodes, GPUs per node, and objects of `multi-node`, or of an overlay with the README's patch."""
    if request.param == "overlay":
        return 2, 1, render(K8S / "overlays" / "multi-node")
    (patch,) = re.findall(r"^    patches:\n      - patch: \|-\n(?:        .*\n)+", README.read_text(), re.MULTILINE)
    shutil.copytree(K8S.parent, tmp_path / "deploy")  # the monitoring component uses files outside k8s
    own = tmp_path / "deploy" / "k8s" / "overlays" / "own"
    own.mkdir()
    (own / "kustomization.yaml").write_text("resources: [../multi-node]\n" + textwrap.dedent(patch))
    return 4, 8, render(own)


def validate(item: Object, version: str = KUBERNETES) -> None:
    """Validates an object against the schema of its kind. Unknown fields are errors."""
    if item["kind"] in CUSTOM:
        jsonschema.validate(item, closed(json.loads((CRDS / f"{item['kind']}.json").read_text())))
    else:
        kubernetes_validate.validate(item, version, strict=True)


def closed(schema: Any) -> Any:
    """The schema without unknown fields, as Kubernetes applies it with strict field validation."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inside = {key: closed(part) for key, part in schema.items()}
    return inside | ({"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {})


def pods(objects: list[Object]) -> dict[str, Any]:
    """Pod specs by the name of the object that creates the pod."""
    return {o["metadata"]["name"]: o["spec"]["template"]["spec"] for o in objects if "template" in o.get("spec", {})}


def test_every_object_fits_its_schema(overlay: tuple[str, list[Object]]) -> None:
    assert len(overlay[1]) >= 20
    for item in overlay[1]:
        validate(item)


@pytest.mark.parametrize(("kind", "field"), [("Deployment", "replica"), ("ScaledObject", "minReplicas")])
def test_a_misspelt_field_would_be_found(kind: str, field: str) -> None:
    broken = named(render(K8S / "overlays" / "multi-node"), kind, "rollout")
    validate(broken)
    broken["spec"][field] = 2
    with pytest.raises(jsonschema.ValidationError, match=field):
        validate(broken)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, to compare it with our renderer")
@pytest.mark.parametrize("name", OVERLAYS)
def test_kubectl_renders_what_the_tests_see(name: str) -> None:
    command = ["kubectl", "kustomize", str(K8S / "overlays" / name)]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def keyed(objects: Any) -> dict[tuple[str, str], Object]:
        return {(o["kind"], o["metadata"]["name"]): o for o in objects}

    assert keyed(yaml.safe_load_all(rendered)) == keyed(render(K8S / "overlays" / name))


def test_every_pod_is_restricted(overlay: tuple[str, list[Object]]) -> None:
    for name, pod in pods(overlay[1]).items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert re.search(r":[\d.]+[\w.-]*$", container["image"]), f"{container['image']} is not pinned"
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert "memory" in container["resources"]["limits"], name
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(pod["containers"][0]), name


def test_every_name_that_is_used_is_there(overlay: tuple[str, list[Object]]) -> None:
    objects = overlay[1]
    names = {(o["kind"], o["metadata"]["name"]) for o in objects}
    for pod in pods(objects).values():
        volumes = {volume["name"] for volume in pod.get("volumes", ())} | {"data"}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= volumes
        for volume in pod.get("volumes", ()):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names
    for item in objects:
        target = item.get("spec", {}).get("scaleTargetRef")
        if target:
            assert ("Deployment", target["name"]) in names


def test_a_pod_reaches_the_runs_when_no_trainer_does(overlay: tuple[str, list[Object]]) -> None:
    """It is part of the overlay, so that it has the user's image, and it runs only when it is scaled up."""
    files, pod, trainer = (
        named(overlay[1], "StatefulSet", "files"),
        pods(overlay[1])["files"],
        pods(overlay[1])["trainer"],
    )
    assert files["spec"]["replicas"] == 0
    for key in ("securityContext", "automountServiceAccountToken"):
        assert pod[key] == trainer[key]
    (container,), (training,) = pod["containers"], trainer["containers"]
    assert container["securityContext"] == training["securityContext"]
    assert pod["volumes"] == [volume for volume in trainer["volumes"] if volume["name"] == "runs"]
    assert container["image"] == pods(overlay[1])["verifier"]["containers"][0]["image"]


def test_secrets_are_named_and_never_written(overlay: tuple[str, list[Object]]) -> None:
    assert not [o for o in overlay[1] if o["kind"] == "Secret"]
    for pod in pods(overlay[1]).values():
        for variable in pod["containers"][0].get("env", ()):
            if re.search("PASSWORD|TOKEN|AUTH", variable["name"]):
                assert "secretKeyRef" in variable["valueFrom"]


def test_selectors_find_their_pods(overlay: tuple[str, list[Object]]) -> None:
    made = [o for o in overlay[1] if "template" in o.get("spec", {})]
    labels = [o["spec"]["template"]["metadata"]["labels"] | numbered(o) for o in made]
    for item in overlay[1]:
        selector = item.get("spec", {}).get("selector") if item["kind"] in ("Service", "PodDisruptionBudget") else None
        if selector:
            wanted = selector.get("matchLabels", selector)
            assert any(wanted.items() <= own.items() for own in labels), item["metadata"]["name"]


def numbered(item: Object) -> dict[str, str]:
    """The label that an Indexed Job adds to its first pod; empty for other objects."""
    indexed = item["spec"].get("completionMode") == "Indexed"
    return {"batch.kubernetes.io/job-completion-index": "0"} if indexed else {}


def test_trainer_pods_meet_where_torchrun_looks(nodes_and_gpus: tuple[int, int, list[Object]]) -> None:
    """Holds for the overlay, and for an overlay on top of it with other numbers of nodes and GPUs."""
    number, gpus, objects = nodes_and_gpus
    job, nodes = named(objects, "Job", "trainer")["spec"], named(objects, "Service", "trainer-nodes")
    pod = job["template"]["spec"]
    variables = {entry["name"]: entry for entry in pod["containers"][0]["env"] if entry["name"].startswith("PET_")}
    assert int(variables["PET_NNODES"]["value"]) == job["completions"] == job["parallelism"] == number
    assert variables["PET_NPROC_PER_NODE"]["value"] == "gpu"
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == gpus
    assert job["completionMode"] == "Indexed"
    assert named(objects, "PersistentVolumeClaim", "runs")["spec"]["accessModes"] == ["ReadWriteMany"]
    rank = variables["PET_NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert rank == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert variables["PET_MASTER_ADDR"]["value"] == f"trainer-0.{nodes['metadata']['name']}"
    assert pod["subdomain"] == nodes["metadata"]["name"]
    assert (nodes["spec"]["clusterIP"], nodes["spec"]["publishNotReadyAddresses"]) == ("None", True)
    assert [str(port["port"]) for port in nodes["spec"]["ports"]] == [variables["PET_MASTER_PORT"]["value"]]
    assert named(objects, "Service", "trainer")["spec"]["selector"].items() >= numbered({"spec": job}).items()


def test_trainer_pods_reach_each_other_and_nobody_else_reaches_more() -> None:
    policies = {
        name: {o["metadata"]["name"]: o["spec"] for o in render(K8S / name) if o["kind"] == "NetworkPolicy"}
        for name in ("base", "overlays/single-gpu", "overlays/multi-node")
    }
    base, single, many = policies.values()
    trainers = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "trainer"}}}
    assert many.pop("trainer-nodes") == trainers | {
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [trainers]}],  # any port: gloo and NCCL choose random ports
        "egress": [{"to": [trainers]}],
    }
    del many["keda"]
    assert many == single
    assert base.items() <= single.items()


def test_nothing_talks_unless_it_must(overlay: tuple[str, list[Object]]) -> None:
    policies = {o["metadata"]["name"]: o["spec"] for o in overlay[1] if o["kind"] == "NetworkPolicy"}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert policies["adapters"]["ingress"][0]["ports"] == [{"port": SPECS["trainer"].grpc_port}]
    engines = [{"port": SPECS[name].grpc_port} for name in ("rollout", "teacher")]
    assert policies["to-adapters"]["egress"][1]["ports"] == policies["from-engines"]["ingress"][0]["ports"] == engines
    assert all("from" in rule for spec in policies.values() for rule in spec.get("ingress", ()))
    for name, direction, pod, peer in (
        ("grading", "ingress", "verifier", "teacher"),
        ("to-grading", "egress", "teacher", "verifier"),
    ):
        (rule,) = policies[name][direction]
        (end,) = rule["from" if direction == "ingress" else "to"]
        assert policies[name]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": pod}
        assert end["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": peer}
        assert rule["ports"] == [{"port": SPECS["verifier"].grpc_port}]


def test_the_run_files_are_runs() -> None:
    assert load(K8S / "base" / "run.toml").engine.device == "cuda"
    tiny = load(K8S / "overlays" / "cpu" / "run.toml")
    local = load(Path(K8S).parent / "runs" / "tiny_cepo.toml")
    places = {"model": {"path"}, "data": {"train", "eval"}}
    assert tiny.model_dump(exclude=places) == local.model_dump(exclude=places)


def test_rollout_and_teacher_follow_their_streams() -> None:
    objects = render(K8S / "overlays" / "multi-node")
    for name, stage in (("rollout", Stage.ROLLOUT), ("teacher", Stage.TEACH)):
        scaled = named(objects, "ScaledObject", name)
        (trigger,) = scaled["spec"]["triggers"]
        assert trigger["type"] == "redis-streams"
        assert trigger["metadata"]["stream"] == "{cepo}:" + stream_of(stage)
        assert trigger["authenticationRef"] == {
            "name": named(objects, "TriggerAuthentication", "redis")["metadata"]["name"]
        }
        assert "replicas" not in named(objects, "Deployment", name)["spec"]


def test_every_service_is_scraped() -> None:
    objects = render(K8S / "overlays" / "multi-node")
    for name in SPECS:
        monitor = named(objects, "ServiceMonitor", name)["spec"]
        service = named(objects, "Service", name)
        assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
        labels = {rule["targetLabel"]: rule["replacement"] for rule in monitor["endpoints"][0]["relabelings"]}
        assert labels == {"job": "cepo", "service": name}  # the alerts select these labels
