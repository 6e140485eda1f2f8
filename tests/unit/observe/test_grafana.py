"""The Grafana dashboard works on the metrics of a run, and docs/operations.md lists every metric."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY, generate_latest

from cepo.service import metrics
from tests.helpers.promql import Query, Scrapes
from tests.unit.deploy.kustomize import K8S
from tests.unit.observe.system import complete

GRAFANA = K8S.parent / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "cepo.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PAGE = (K8S.parents[1] / "docs" / "operations.md").read_text()
NEEDS_A_GPU = {"cepo_gpu_memory_used_bytes", "cepo_gpu_memory_total_bytes"}


@pytest.fixture(scope="module")
def scrapes(tmp_path_factory: pytest.TempPathFactory) -> Scrapes:
    """Two scrapes of a run."""
    asyncio.run(complete(tmp_path_factory.mktemp("shown") / "run"))
    scraped = Scrapes()
    for at in (0.0, 15.0):
        scraped.add(at, dict.fromkeys(("rollout", "teacher", "trainer"), generate_latest().decode()))
    return scraped


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_query_finds_something(panel: dict[str, Any], scrapes: Scrapes) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        query = Query(target["expr"].replace("$run", ".*"))
        if {selector.name for selector in query.selectors} <= NEEDS_A_GPU:
            continue
        assert query(scrapes, 15.0), target["expr"]


def test_a_query_for_a_metric_that_is_not_there_finds_nothing(scrapes: Scrapes) -> None:
    assert not Query("sum by (stage) (rate(cepo_goups_total[5m]))")(scrapes, 15.0)
    assert not Query('cepo_groups_total{result="lost"}')(scrapes, 15.0)


def test_the_dashboard_has_the_shape_that_is_provisioned() -> None:
    assert {"uid", "title", "schemaVersion", "templating", "time"} <= set(DASHBOARD)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    variable = DASHBOARD["templating"]["list"][0]
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    for holder in [variable, *PANELS, *(target for panel in PANELS for target in panel["targets"])]:
        assert holder["datasource"] == {"type": source["type"], "uid": source["uid"]}
    for panel in PANELS:
        assert panel["description"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert [target["refId"] for target in panel["targets"]] == sorted({t["refId"] for t in panel["targets"]})
    for i, a in enumerate(places):
        for b in places[i + 1 :]:
            apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
            assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]


def test_compose_mounts_what_is_provisioned() -> None:
    services = yaml.safe_load((K8S.parents[1] / "docker-compose.yml").read_text())["services"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "cepo.yml").read_text())["providers"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert "./deploy/prometheus:/etc/prometheus:ro" in services["prometheus"]["volumes"]
    config = yaml.safe_load((K8S.parent / "prometheus" / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]  # a file in the same folder


def test_the_page_lists_every_metric_and_alert_and_no_other() -> None:
    ours = {family.name: family for family in REGISTRY.collect() if family.name.startswith("cepo_")}
    named = {name + "_total" * (family.type == "counter") for name, family in ours.items()}
    named = {name for name in named if not name.startswith("cepo_train_")} | NEEDS_A_GPU
    listed = dict(re.findall(r"^\| `(cepo_\w+)` \| (.*?) \|", PAGE, re.MULTILINE))
    assert set(listed) == named
    for name, family in ours.items():
        if not name.startswith("cepo_train_"):
            assert listed[name + "_total" * (family.type == "counter")] == family.documentation
    rules = yaml.safe_load((K8S.parent / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    assert re.findall(r"^\| `(Cepo\w+)` \|", PAGE, re.MULTILINE) == [rule["alert"] for rule in rules]


def test_keys_of_a_step_become_names() -> None:
    assert metrics.train_name("credit/delta_pos_fraction") == "cepo_train_credit_delta_pos_fraction"
    assert metrics.train_name("groups/total") == "cepo_train_groups"  # the suffix _total is only for counters
    shown = metrics.TrainMetrics()
    shown.step("a", {"step": 1, "accuracy/eval": 0.5})
    shown.step("a", {"step": 2, "note": "not a number"})
    samples = {sample.name: sample.value for family in shown.collect() for sample in family.samples}
    assert samples == {"cepo_train_step": 2.0, "cepo_train_accuracy_eval": 0.5}
