"""The part of `docker compose config` that docker-compose.yml uses, so that it is read where there is no client."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.unit.deploy.kustomize import K8S
from tests.unit.deploy.surroundings import SECRET

ROOT = K8S.parents[1]
CLEAR, TLS = ("docker-compose.yml",), ("docker-compose.yml", "docker-compose.tls.yml")
PROFILES = ("gpu", "multi-gpu", "cpu")
REPLACED = {"command", "entrypoint", "test"}
"""Lists of which the last file's is taken; others are joined."""


def read(files: tuple[str, ...]) -> dict[str, Any]:
    """The services by name, with variables filled in and each file on top of the one before."""
    found: Any = {}
    for file in files:
        found = _layered(found, _interpolated(yaml.safe_load((ROOT / file).read_text())["services"]))
    services: dict[str, Any] = found
    return services


def started(services: dict[str, Any], name: str, profile: str) -> dict[str, Any]:
    """The one service of this name that a profile starts."""
    (found,) = [
        service
        for key, service in services.items()
        if key.split("-")[0] == name and profile in service.get("profiles", [profile])
    ]
    return found


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Sources of volumes by where they are mounted; the last one of a place is taken."""
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
