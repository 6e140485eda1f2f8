"""A group's trace through every stage, received over real HTTP, and the ids in log lines."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cepo.errors import UserError
from cepo.messages.groups import RolloutGroup, Stage
from cepo.service.metrics import StageMetrics
from cepo.service.stage import StageLoop
from cepo.service.telemetry import DeliveryTrace, JsonFormatter, logged
from cepo.service.tracing import TRACER, root_span_id, trace_id
from cepo.testing import MemoryBus
from tests.helpers.factories import POLICY, make_task
from tests.helpers.otlp import Collector
from tests.unit.observe.system import complete

STAGES = ("rollout", "verify", "teach")


@pytest.fixture
def collector() -> Iterator[Collector]:
    """What this process's spans are sent to."""
    with Collector() as collecting:
        TRACER.start("toy", collecting.endpoint)
        yield collecting
        TRACER.stop()


def line(formatter: JsonFormatter) -> dict[str, str]:
    return json.loads(formatter.format(logging.LogRecord("x", logging.INFO, "x.py", 1, "hello", None, None)))


async def test_a_group_is_one_trace_from_its_publication_to_the_trainer(collector: Collector, tmp_path: Path) -> None:
    await complete(tmp_path / "traced")
    TRACER.stop()
    group_id = "traced/1/0"
    spans = {span.name: span for span in collector.traces[trace_id(group_id)] if span.name in (*STAGES, "collect")}
    (root,) = [span for span in collector.traces[trace_id(group_id)] if not span.parent]
    assert (root.name, root.id, root.service) == ("group", root_span_id(group_id), "cepo-toy")
    assert root.attributes["cepo.result"] == "done"
    assert set(spans) == {*STAGES, "collect"}
    for name, span in spans.items():
        assert span.parent == root.id
        assert root.begun - 0.01 <= span.begun <= span.ended <= root.ended + 0.1
        ids = {key: span.attributes[f"cepo.{key}"] for key in ("run", "group", "step", "purpose")}
        assert ids == {"run": "traced", "group": group_id, "step": 1, "purpose": "train"}
        parts = sorted((s for s in collector.traces[trace_id(group_id)] if s.parent == span.id), key=lambda s: s.begun)
        assert [part.name for part in parts] == (["wait", "handler", "hop"] if name in STAGES else [])
        assert not parts or (parts[0].begun, parts[-1].ended) == (span.begun, span.ended)
    order = [spans[name].begun for name in (*STAGES, "collect")]
    assert order == sorted(order)


async def test_a_failed_delivery_says_why_and_the_next_is_another_span(collector: Collector) -> None:
    bus, attempts = MemoryBus(claim_seconds=0.05), 0

    async def refuse(task: object) -> RolloutGroup:
        nonlocal attempts
        attempts += 1
        raise RuntimeError("not yet") if attempts == 1 else UserError("too long")

    stop, task = asyncio.Event(), make_task(run="failing")
    await bus.publish("rollout", [task])
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(StageLoop(bus, Stage.ROLLOUT, refuse, claim_seconds=0.05).run(stop))
        while await bus.depth("rollout"):
            await asyncio.sleep(0.01)
        stop.set()
    TRACER.stop()
    spans = [span for span in collector.traces[trace_id(task.group_id)] if span.name == "rollout"]
    assert [(s.attributes["cepo.deliveries"], s.error) for s in spans] == [
        (1, "RuntimeError: not yet"),
        (2, "too long"),
    ]


def test_log_lines_carry_the_ids_of_the_work_and_its_trace_while_there_is_one(collector: Collector) -> None:
    task, formatter = make_task(policy=POLICY), JsonFormatter("rollout")
    with logged(task, "ROLLOUT"):
        traced = line(formatter)
        TRACER.stop()
    with logged(task, "ROLLOUT"):
        plain = line(formatter)
    ids = {"run": "run", "group": "run/0/0", "stage": "ROLLOUT", "policy": POLICY.name}
    assert ids.items() <= traced.items()
    assert ids.items() <= plain.items()
    assert traced["trace"] == trace_id("run/0/0")
    assert "trace" not in plain
    assert not set(ids) & set(line(formatter))


def test_nothing_is_sent_without_an_endpoint() -> None:
    assert not TRACER.on
    DeliveryTrace(StageMetrics(Stage.ROLLOUT), 0.0, 1).send(make_task(), Stage.ROLLOUT)


def test_a_collector_that_is_not_there_costs_nothing_but_a_log_line(free_port: Callable[[], int]) -> None:
    TRACER.start("toy", f"http://127.0.0.1:{free_port()}")
    try:
        trace = DeliveryTrace(StageMetrics(Stage.ROLLOUT), 0.0, 1)
        trace.send(make_task(), Stage.ROLLOUT)
    finally:
        TRACER.stop()
    assert not TRACER.on
