"""Pods fit the nodes of deploy/README.md, start in order on a shared GPU, and share one download of the model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.deploy.kustomize import K8S, Object, named, render
from tests.unit.deploy.test_manifests import OLDEST, README, overlay, pods, validate

__all__ = ["overlay"]
ENGINES = ("rollout", "teacher", "trainer")
UNITS = {"m": 1e-3, "": 1.0, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
NODES = {"single-gpu": (7.5, 28.0), "cpu": (3.0, 6.0)}
"""CPUs and GiB that pods may request: of 8 CPUs and 32 GiB on g5.2xlarge or g2-standard-8, and of 4 CPUs and 8 GiB in
kind, Kubernetes, its system pods and the daemons of a GPU node take the rest."""


def quantity(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", text).groups()
    return float(number) * UNITS[unit]


def requested(item: Object, resource: str) -> float:
    """What one object requests: its replicas times the larger of a pod's containers and its largest init container."""
    pod = item["spec"]["template"]["spec"]
    sizes = {
        kind: [quantity(each["resources"]["requests"][resource]) for each in pod.get(kind, ())]
        for kind in ("containers", "initContainers")
    }
    number = item["spec"].get("replicas", item["spec"].get("parallelism", 1))
    return number * max(sum(sizes["containers"]), *sizes["initContainers"], 0.0)


@pytest.mark.parametrize("name", NODES)
def test_all_pods_fit_one_node(name: str) -> None:
    items = [item for item in render(K8S / "overlays" / name) if "template" in item.get("spec", {})]
    assert len(items) == 6
    cpus, gib = NODES[name]
    assert sum(requested(item, "cpu") for item in items) <= cpus
    assert sum(requested(item, "memory") for item in items) <= gib * 2**30


def test_the_oldest_version_that_is_promised_takes_every_object(overlay: tuple[str, list[Object]]) -> None:
    for item in overlay[1]:
        validate(item, OLDEST)
    for file in (README, K8S / "base" / "kustomization.yaml"):
        assert f"Kubernetes {OLDEST} or newer" in file.read_text()


def test_engines_share_a_volume_and_one_download_of_the_model(overlay: tuple[str, list[Object]]) -> None:
    """The cache's file locks make the other pods wait for the first (huggingface_hub's WeakFileLock)."""
    claim = named(overlay[1], "PersistentVolumeClaim", "models")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany" if overlay[0] == "multi-node" else "ReadWriteOnce"]
    for name in ENGINES:
        pod = pods(overlay[1])[name]
        download, (engine,) = pod["initContainers"][0], pod["containers"]
        assert download["command"] == ["python", "-m", "cepo.cli.download", engine["command"][5]]
        assert download["image"] == engine["image"]
        for container in (download, engine):
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounts.items() >= {"models": "/models", "run": "/etc/cepo/run", "tmp": "/tmp"}.items()
            assert [variable for variable in container["env"] if variable["name"] == "HF_TOKEN"]
        (models,) = [volume for volume in pod["volumes"] if volume["name"] == "models"]
        assert models["persistentVolumeClaim"] == {"claimName": "models"}
        assert ("affinity" in pod) == (overlay[0] != "multi-node")  # pods of several nodes do not share ReadWriteOnce


@pytest.mark.parametrize("image", ["cpu", "rollout", "torch"])
def test_compiled_kernels_outlive_the_container(image: str) -> None:
    text = (K8S.parent / "docker" / f"{image}.Dockerfile").read_text()
    variables = dict(re.findall(r"\b([A-Z_]+)=(/\S+)", text))
    for name in ("HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", *["VLLM_CACHE_ROOT"] * (image != "torch")):
        assert Path(variables[name]).is_relative_to("/models"), name


def test_on_a_shared_gpu_the_others_wait_until_vllm_has_its_memory() -> None:
    objects = render(K8S / "overlays" / "single-gpu")
    ready = named(objects, "Service", "rollout-ready")["spec"]
    assert ready["clusterIP"] == "None"  # the name resolves to ready pods only
    assert "publishNotReadyAddresses" not in ready
    assert ready["selector"] == named(objects, "Service", "rollout")["spec"]["selector"]
    waits = {name: [each["name"] for each in pods(objects)[name]["initContainers"]] for name in ENGINES}
    assert waits == {
        "rollout": ["model"],
        "teacher": ["model", "rollout-ready"],
        "trainer": ["model", "rollout-ready"],
    }
    assert "getent hosts rollout-ready" in pods(objects)["teacher"]["initContainers"][1]["command"][-1]


def test_engines_tolerate_the_taint_of_gpu_nodes(overlay: tuple[str, list[Object]]) -> None:
    for name in ENGINES:
        (toleration,) = pods(overlay[1])[name]["tolerations"]
        assert toleration == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


@pytest.mark.parametrize("name", ["single-gpu", "multi-node"])
def test_a_component_chooses_nodes_and_runtime(name: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    parts = {"resources": [str(K8S / "overlays" / name)], "components": [str(K8S / "components" / "gpu-nodes")]}
    (own / "kustomization.yaml").write_text(yaml.safe_dump(parts))
    objects = render(own)
    for engine in ENGINES:
        pod = pods(objects)[engine]
        assert (pod["runtimeClassName"], pod["nodeSelector"]) == ("nvidia", {"nvidia.com/gpu.present": "true"})
        validate(named(objects, "Job" if engine == "trainer" else "Deployment", engine))
    assert not {"runtimeClassName", "nodeSelector"} & pods(objects)["verifier"].keys()


def test_names_resolve_with_kube_dns_nodelocal_and_openshift(overlay: tuple[str, list[Object]]) -> None:
    egress: list[Any] = named(overlay[1], "NetworkPolicy", "names")["spec"]["egress"]
    allowed = {
        (next(iter(peer.get("ipBlock", peer.get("namespaceSelector", {}).get("matchLabels")).values())), port["port"])
        for rule in egress
        for peer in rule["to"]
        for port in rule["ports"]
    }
    assert allowed == {("kube-system", 53), ("169.254.20.10/32", 53), ("openshift-dns", 5353)}
    assert all({port["protocol"] for port in rule["ports"]} == {"UDP", "TCP"} for rule in egress)
