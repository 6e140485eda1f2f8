"""Renders an overlay like `kubectl kustomize`, without kubectl. Supports only what deploy/k8s uses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
K8S = Path(__file__).parents[3] / "deploy" / "k8s"
KEYS = {
    *("apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "generatorOptions"),
    *("patches", "images"),
}
CLUSTER_WIDE = {"Namespace"}
CUSTOM = {"ScaledObject", "TriggerAuthentication", "ServiceMonitor", "PrometheusRule"}
"""Kinds of operators, which not every overlay uses."""


def render(folder: Path) -> list[Object]:
    """The objects of an overlay.

    Raises:
        AssertionError: the overlay uses an unsupported feature, or a patch matches no object.
    """
    return _build(folder, [])


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The only object of this kind and name."""
    (item,) = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return item


def _build(folder: Path, inherited: list[Object]) -> list[Object]:
    wanted = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(wanted) <= KEYS, set(wanted) - KEYS
    objects = list(inherited)
    for resource in wanted.get("resources", ()):
        path = folder / resource
        objects += _build(path, []) if path.is_dir() else _documents(path)
    for generator in wanted.get("configMapGenerator", ()):
        _generate(generator, folder, objects)
    for component in wanted.get("components", ()):
        objects = _build(folder / component, objects)
    for patch in wanted.get("patches", ()):
        wish = yaml.safe_load(patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text())
        if "target" in patch:
            _patch(objects, patch["target"], wish)
        else:
            _merge(named(objects, wish["kind"], wish["metadata"]["name"]), wish)
    for image in wanted.get("images", ()):
        _rename(objects, image)
    for item in objects:
        if "namespace" in wanted and item["kind"] not in CLUSTER_WIDE:
            item["metadata"]["namespace"] = wanted["namespace"]
    return objects


def _documents(path: Path) -> list[Object]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def _generate(generator: Object, folder: Path, objects: list[Object]) -> None:
    data = {name: (folder / name).read_text() for name in generator.get("files", ())}
    data |= dict(literal.split("=", 1) for literal in generator.get("literals", ()))
    if generator.get("behavior") == "replace":
        named(objects, "ConfigMap", generator["name"])["data"] = data
    else:
        labels = generator.get("options", {}).get("labels")
        metadata = {"name": generator["name"]} | ({"labels": labels} if labels else {})
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def _patch(objects: list[Object], target: Object, operations: list[Object]) -> None:
    matching = [
        item
        for item in objects
        if re.fullmatch(target["kind"], item["kind"])
        and re.fullmatch(target.get("name", ".*"), item["metadata"]["name"])
    ]
    assert matching or target["kind"] in CUSTOM, f"no object for the patch of {target}"
    for item in matching:
        for operation in operations:
            _apply(item, operation)


def _merge(item: Object, wish: Object) -> None:
    """A strategic merge patch: merges objects recursively, and list entries by their name."""
    for key, value in wish.items():
        if isinstance(value, list):
            for entry in value:
                (old,) = [old for old in item[key] if old["name"] == entry["name"]]
                _merge(old, entry)
        elif isinstance(value, dict):
            _merge(item[key], value)
        else:
            item[key] = value


def _apply(item: Object, operation: Object) -> None:
    *parents, last = [part.replace("~1", "/") for part in operation["path"].removeprefix("/").split("/")]
    node: Any = item
    for part in parents:
        node = node[int(part) if isinstance(node, list) else part]
    value = yaml.safe_load(yaml.safe_dump(operation.get("value")))  # a copy for each object
    if operation["op"] == "remove":
        del node[last]
    elif isinstance(node, list):
        assert operation["op"] == "add"
        node.insert(len(node) if last == "-" else int(last), value)
    else:
        assert operation["op"] == "add" or last in node, f"{operation['path']} does not exist and cannot be replaced"
        node[last] = value


def _rename(objects: list[Object], image: Object) -> None:
    for item in objects:
        pod = item.get("spec", {}).get("template", {}).get("spec", {})
        for container in (*pod.get("initContainers", ()), *pod.get("containers", ())):
            if re.sub(r":[^/]*$", "", container["image"]) == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
