"""Evaluates alert rules on scrapes of this process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import yaml
from prometheus_client import REGISTRY, generate_latest

from tests.helpers.promql import Labels, Query, Scrapes
from tests.unit.deploy.kustomize import K8S

RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load((K8S.parent / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}
SERVICES = ("rollout", "verifier", "teacher", "trainer")
SCRAPE_SECONDS = 15.0


def exposition() -> dict[str, str | None]:
    """The metrics of this process, scraped once for each service."""
    return dict.fromkeys(SERVICES, generate_latest().decode())


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def lasting(
    before: Mapping[str, str | None] | None, after: Mapping[str, str | None], seconds: float
) -> tuple[Scrapes, float]:
    """Scrapes of a state that lasts for some time, after one scrape of the previous state."""
    scrapes, now = Scrapes(), time.time()
    if before is not None:
        scrapes.add(now - SCRAPE_SECONDS, before)
    scrapes.add(now, after)
    while now + seconds > scrapes.samples[-1][0]:
        scrapes.repeat(scrapes.samples[-1][0] + SCRAPE_SECONDS)
    return scrapes, scrapes.samples[-1][0]


def waited(rule: Mapping[str, Any]) -> float:
    return float(str(rule.get("for", "0m")).removesuffix("m")) * 60


def firing(name: str, scrapes: Scrapes, now: float) -> set[Labels]:
    """The series for which an alert fires: those that its expression returned at every evaluation during `for`."""
    rule = RULES[name]
    query, at, found = Query(rule["expr"]), now - waited(rule), []
    while at <= now:
        value = query(scrapes, at)
        assert isinstance(value, dict), "an alert's expression is a vector"
        found.append(set(value))
        at += SCRAPE_SECONDS
    return set.intersection(*found)


def fires(
    name: str, after: Mapping[str, str | None] | None = None, before: Mapping[str, str | None] | None = None
) -> list[dict[str, str]]:
    """The labels with which an alert fires after its `for` duration."""
    scrapes, now = lasting(before, after or exposition(), waited(RULES[name]))
    return [dict(labels) for labels in firing(name, scrapes, now)]
