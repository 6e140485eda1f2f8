"""Reads docker-compose.yml like `docker compose config`, without the client. Supports only what our files use."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.unit.deploy.environment import SECRET
from tests.unit.deploy.kustomize import K8S

ROOT = K8S.parents[1]
CLEAR, TLS = ("docker-compose.yml",), ("docker-compose.yml", "docker-compose.tls.yml")
PROFILES = ("gpu", "multi-gpu", "cpu")
REPLACED = {"command", "entrypoint", "test"}
"""Keys whose list in a later file replaces the earlier list. Other lists are concatenated."""


def read(files: tuple[str, ...]) -> dict[str, Any]:
    """The services by name, with variables substituted. Each file is merged over the previous one."""
    merged: Any = {}
    for file in files:
        merged = _layered(merged, _interpolated(yaml.safe_load((ROOT / file).read_text())["services"]))
    services: dict[str, Any] = merged
    return services


def started(services: dict[str, Any], name: str, profile: str) -> dict[str, Any]:
    """The only service of this name that a profile starts."""
    (chosen,) = [
        service
        for key, service in services.items()
        if key.split("-")[0] == name and profile in service.get("profiles", [profile])
    ]
    return chosen


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Volume sources by mount path. If a path occurs twice, the last source counts."""
    pairs = [v.split(":")[:2] if isinstance(v, str) else (v["source"], v["target"]) for v in service.get("volumes", ())]
    return {target: source for source, target in pairs}


def _layered(below: Any, above: Any, key: str = "") -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        both = {name: _layered(below[name], above[name], name) for name in below.keys() & above.keys()}
        return {**below, **above, **both}
    return below + above if isinstance(below, list) and key not in REPLACED else above


def _interpolated(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _interpolated(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_interpolated(value) for value in node]
    if isinstance(node, str):
        node = re.sub(r"\$\{\w+:\?[^}]*\}", SECRET, node)
        return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", node)
    return node
