"""The whole system on the tiny model: real vLLM, Redis, gRPC and processes, started by `cepo train`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
import yaml

from cepo import tiny
from cepo.messages.groups import Message
from cepo.prompts.renderer import Renderer
from cepo.service.tracing import trace_id
from tests.browser.chromium import needs_chromium
from tests.helpers.exploring import explore
from tests.helpers.otlp import Collector, Span
from tests.helpers.promql import Query, Scrapes
from tests.pipeline.following import Seen, followed
from tests.pipeline.support import DOCUMENTED_KEYS, ROOT, SLOW_SECONDS, asked, held, kill, rows, run, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 6


@dataclass(frozen=True)
class Observed:
    """An undisturbed run, and its metrics and traces."""

    run_dir: Path
    printed: str
    scrapes: Scrapes
    """Two scrapes of every service: after the third and after the fifth step."""
    traces: Mapping[str, list[Span]]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    scrapes = Scrapes()
    with Collector() as collector, run(run_dir, CEPO_OTLP_ENDPOINT=collector.endpoint) as process:
        for steps in (3, 5):
            wait_until(lambda: len(rows(run_dir)) >= steps, process)  # noqa: B023 only called in this iteration
            with held(run_dir):
                addresses = json.loads((run_dir / "services.json").read_text())["http"]
                scrapes.add(time.time(), {name: asked(f"{url}/metrics") for name, url in addresses.items()})
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return Observed(run_dir, printed, scrapes, collector.traces)


@pytest.fixture(scope="module")
def undisturbed(observed: Observed) -> tuple[Path, str]:
    return observed.run_dir, observed.printed


def final_digest(run_dir: Path) -> str:
    weights = run_dir / "adapters" / f"v{STEPS:06d}" / "adapter_model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def test_a_run_writes_every_documented_metric_and_prints_the_gain_at_the_end(undisturbed: tuple[Path, str]) -> None:
    run_dir, printed = undisturbed
    metrics = rows(run_dir)
    assert [row["step"] for row in metrics] == list(range(STEPS))
    for row in metrics:
        assert not set(DOCUMENTED_KEYS) - set(row)
        assert row["groups/failed"] == 0
        assert row["groups/total"] == 6
    assert "accuracy/eval_before" in metrics[0]
    assert [step for step, row in enumerate(metrics) if "accuracy/eval" in row] == [2, 5]
    assert metrics[0]["credit/tokens"] > 0
    assert metrics[0]["credit/delta_mean_correct"] > metrics[0]["credit/delta_mean_wrong"]
    assert max(row["rollout/logp_gap"] for row in metrics) < 1e-4
    assert "held-out accuracy" in printed
    assert str(run_dir) in printed
    assert "next:" in printed
    samples = json.loads((run_dir / "rollouts" / "step-000000.jsonl").read_text().splitlines()[0])["samples"]
    assert {e["context"] for s in samples for e in s["evidence"]} >= {"ANSWER", "REJECTED"}


def test_every_query_of_the_dashboard_finds_something_in_a_run_and_no_alert_fires(observed: Observed) -> None:
    deploy, now = ROOT / "deploy", observed.scrapes.samples[-1][0]
    for panel in json.loads((deploy / "grafana" / "dashboards" / "cepo.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            query = Query(target["expr"].replace("$run", ".*"))
            if not any("gpu" in selector.name for selector in query.selectors):
                assert query(observed.scrapes, now), target["expr"]
    rules = yaml.safe_load((deploy / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    firing = {rule["alert"] for rule in rules if Query(rule["expr"])(observed.scrapes, now)}
    assert firing <= {
        "CepoTeacherNotHidden",
        "CepoNoSignal",
    }  # both are expected with six prompts


def test_a_group_is_one_trace_through_all_services(observed: Observed) -> None:
    evidenced = [json.loads(line) for line in (observed.run_dir / "rollouts" / "step-000000.jsonl").open()]
    group_id = next(row["group"] for row in evidenced if row["samples"][0]["evidence"])
    spans = observed.traces[trace_id(group_id)]
    (root,) = [span for span in spans if not span.parent]
    children = {(span.service, span.name) for span in spans if span.parent == root.id}
    assert (root.service, root.name) == ("cepo-trainer", "group")
    assert children == {
        ("cepo-rollout", "rollout"),
        ("cepo-verifier", "verify"),
        ("cepo-teacher", "teach"),
        ("cepo-trainer", "collect"),
    }


def dashboard_of(run_dir: Path) -> dict[str, float]:
    """The first row of metrics that the dashboard of a running run sends. Also checks that it serves the page."""
    address = json.loads((run_dir / "services.json").read_text())["http"]["trainer"]
    assert '<h2 id="groups-title">' in asked(f"{address}/")
    with httpx.stream("GET", f"{address}/v1/events", timeout=SLOW_SECONDS) as reply:
        lines = reply.iter_lines()
        assert "event: row" in lines
        return json.loads(next(lines).removeprefix("data: "))


@dataclass(frozen=True)
class Disturbed:
    """A run that was stopped and resumed, and then had every process killed once."""

    run_dir: Path
    stopped: str
    """The output of the first part, which was stopped."""
    done: int
    """Number of steps finished when the run was stopped."""
    seen: Seen
    """What the dashboard showed during the second part."""


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    folder = tmp_path_factory.mktemp("disturbed")
    run_dir = folder / "run"
    with run(run_dir) as process:
        wait_until(lambda: len(rows(run_dir)) >= 1, process)
        with held(run_dir):
            assert dashboard_of(run_dir)["step"] == 0
            process.send_signal(signal.SIGINT)
        stopped, _ = process.communicate()
    assert process.returncode == 0, stopped
    done = len(rows(run_dir))

    with run(run_dir, "--resume") as process:
        wait_until(lambda: len(rows(run_dir)) > done, process)
        with held(run_dir), followed(run_dir, folder / "profile", STEPS) as seen:
            for name in ("rollout", "verifier", "teacher", "redis", "trainer"):
                kill(name, run_dir)
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return Disturbed(run_dir, stopped, done, seen)


def test_stopped_resumed_and_with_every_process_killed_it_ends_with_the_same_adapter(
    undisturbed: tuple[Path, str], disturbed: Disturbed
) -> None:
    assert f"cepo resume {disturbed.run_dir}" in disturbed.stopped
    assert 1 <= disturbed.done < STEPS
    metrics = rows(disturbed.run_dir)
    assert [row["step"] for row in metrics] == list(range(STEPS))
    assert {(row["groups/total"], row["groups/failed"]) for row in metrics} == {(6.0, 0.0)}
    assert final_digest(disturbed.run_dir) == final_digest(undisturbed[0])
    compared = ("reward/mean", "credit/delta_mean", "loss/policy", "tokens/trained", "accuracy/eval")
    for ours, theirs in zip(metrics, rows(undisturbed[0]), strict=True):
        assert [ours.get(key) for key in compared] == [theirs.get(key) for key in compared]


@needs_chromium
def test_the_dashboard_stays_open_while_its_trainer_is_killed_and_draws_every_step(disturbed: Disturbed) -> None:
    seen = disturbed.seen
    assert disturbed.done < seen.begun < seen.ended == STEPS
    assert "log P given r⁺" in seen.tip
    assert "advantage" in seen.tip
    assert (seen.loads, seen.failures) == (1, ())


def test_cepo_dashboard_answers_for_the_ended_run_as_its_schema_says(
    undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "cepo", "dashboard", str(undisturbed[0]), "--port", "0"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1].rstrip("/")
        problems = explore(address, "", tmp_path, examples=5)
        process.terminate()
    assert not problems, problems


def test_every_adapter_loads_in_stock_peft_and_changes_the_model(undisturbed: tuple[Path, str]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([Renderer(str(tiny.path())).canary_ids(16)])
    folders = sorted((undisturbed[0] / "adapters").iterdir())
    assert len(folders) == STEPS
    seen = set()
    for folder in folders:
        base = AutoModelForCausalLM.from_pretrained(tiny.path(), dtype=torch.float32)
        with torch.no_grad():
            seen.add(float(PeftModel.from_pretrained(base, folder)(ids).logits.sum()))
    assert len(seen) == STEPS


def test_every_adapter_loads_in_stock_vllm_and_scores_as_peft_does(
    undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    prompt = Renderer(str(tiny.path())).prompt_ids([Message(role="user", content="23 + 45 - 17 = ?")])
    folders = sorted((undisturbed[0] / "adapters").iterdir())
    out = tmp_path / "logps.json"
    job = {"model": str(tiny.path()), "prompt": prompt, "adapters": [str(f) for f in folders], "out": str(out)}
    script = ROOT / "tests" / "pipeline" / "stock_vllm.py"
    log = tmp_path / "vllm.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, script, json.dumps(job)], stdout=file, stderr=file, start_new_session=True
        )
    try:
        assert process.wait() == 0, log.read_text()[-3000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the engine's processes outlive a script that exits early
    for folder, logps in zip(folders, json.loads(out.read_text()), strict=True):
        assert torch.tensor(logps) == pytest.approx(_peft_logps(folder, prompt), abs=1e-4)


def _peft_logps(folder: Path, prompt: tuple[int, ...]) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny.path(), dtype=torch.float32)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        logps = PeftModel.from_pretrained(base, folder)(ids).logits.log_softmax(-1)
    return logps[0, :-1].gather(1, ids[0, 1:, None]).flatten()
