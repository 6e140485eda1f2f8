"""Every alert fires if its condition is caused, and none on a healthy run; expressions run on real metrics."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cepo.errors import Unreachable, UserError
from cepo.messages.groups import PolicyProof, PolicyRef, PromptTask, RolloutGroup, Stage
from cepo.messages.wire import to_bytes
from cepo.net.settings import Settings
from cepo.service import chassis, metrics
from cepo.service.adapters import AdapterCache, resident
from cepo.service.bus import RedisBus, ready
from cepo.service.stage import StageLoop
from cepo.service.telemetry import loading
from cepo.testing import MemoryBus, ToyEngine
from services.trainer.collector import Collector
from services.trainer.loop import Run
from services.verifier.pool import GraderPool
from services.verifier.verdicts import Item
from tests.helpers.factories import POLICY, make_evidenced, make_task
from tests.helpers.processes import RedisServer
from tests.unit.deploy.kustomize import K8S
from tests.unit.observe.alerting import RULES, SERVICES, counted, exposition, fires, firing, lasting
from tests.unit.observe.system import Fault, complete

CLAIM_SECONDS = 0.02
pytestmark = pytest.mark.usefixtures("no_runs")


@pytest.fixture
def no_runs() -> None:
    """Removes the runs of other tests, because metrics belong to the whole process."""
    for metric in (metrics.PROGRESS, metrics.PUBLISHED_VERSION, metrics.LAG_BOUND, metrics.QUEUE_OLDEST_SECONDS):
        metric.clear()
    metrics.TRAIN.clear()
    metrics.READY.set_function(lambda: 1.0)


async def work(handler: Callable[[Any], Any], tasks: int, until: Callable[[], bool], deliveries: int = 100) -> None:
    """Runs a rollout stage with a handler until a condition holds."""
    bus, stop = MemoryBus(CLAIM_SECONDS), asyncio.Event()
    await bus.publish("rollout", [make_task(index=i) for i in range(tasks)])
    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        loop = StageLoop(bus, Stage.ROLLOUT, handler, 64, CLAIM_SECONDS, deliveries)
        group.create_task(loop.run(stop))
        while not until():
            await asyncio.sleep(0.01)
        stop.set()


def waited(run: Run) -> set[str]:
    """The alert of a trainer that waits for its teacher, if it did wait: on a busy machine any run may."""
    row = run.status.row
    return {"CepoTeacherNotHidden"} if row["time/teacher_exposed_seconds"] > row["time/step_seconds"] / 10 else set()


async def test_a_healthy_run_wakes_nobody(tmp_path: Path) -> None:
    before = exposition()
    run = await complete(tmp_path / "healthy")
    scrapes, now = lasting(before, exposition(), 20 * 60)
    assert {name for name in RULES if firing(name, scrapes, now)} == waited(run)


async def test_a_run_that_stands_still_is_noticed_after_half_an_hour(tmp_path: Path) -> None:
    await complete(tmp_path / "still")
    scrapes, now = lasting(None, exposition(), 31 * 60)
    assert firing("CepoNoProgress", scrapes, now - 120) == set()
    assert {dict(labels)["run"] for labels in firing("CepoNoProgress", scrapes, now)} == {"still"}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("CepoLogProbGap", Fault(logp_shift=-0.5)),
        ("CepoTeacherNotHidden", Fault(teacher_seconds=1.0)),
        ("CepoNoSignal", Fault(always_wrong=True)),
    ],
)
async def test_a_step_that_goes_wrong_is_seen_in_its_numbers(name: str, fault: Fault, tmp_path: Path) -> None:
    run = await complete(tmp_path / name, fault)
    assert {labels["run"] for labels in fires(name)} == {name}
    others = {"CepoLogProbGap", "CepoTeacherNotHidden", "CepoNoSignal"} - {name}
    assert {other for other in others if fires(other)} == waited(run) - {name}


async def test_weights_that_are_not_proven_are_an_alert(tmp_path: Path) -> None:
    before = exposition()
    with pytest.raises(ExceptionGroup, match="unhandled") as caught:
        await complete(tmp_path / "unproven", Fault(canary_shift=1.0))
    assert caught.group_contains(UserError)
    assert fires("CepoSyncProofFailed", before=before)
    assert not fires("CepoSyncProofFailed", before=exposition())


async def test_groups_given_up_are_an_alert() -> None:
    async def refuse(task: Any) -> RolloutGroup:
        raise UserError("the prompt is too long")

    before, begun = exposition(), counted("cepo_groups_total", stage="rollout", result="failed")
    await work(refuse, 1, lambda: counted("cepo_groups_total", stage="rollout", result="failed") > begun)
    assert {labels["stage"] for labels in fires("CepoDeadLetters", before=before)} == {"rollout"}
    assert fires("CepoDeadLetters", before=exposition()) == []


async def test_items_that_cannot_be_read_are_an_alert() -> None:
    bus = MemoryBus(CLAIM_SECONDS, max_deliveries=1)
    metrics.UNREADABLE.labels("verify")
    before = exposition()
    await bus.put("verify", "RolloutGroupV2", b"newer")
    assert await bus.receive("verify", "worker", 1, 0.0) == []
    assert {labels["stream"] for labels in fires("CepoUnreadable", before=before)} == {"verify"}
    assert fires("CepoUnreadable", before=exposition()) == []


async def test_groups_that_redis_lost_are_an_alert() -> None:
    async def publish(tasks: Sequence[PromptTask]) -> None:
        await bus.publish(ready("run"), [make_evidenced(task=task) for task in tasks])

    bus, task = MemoryBus(), make_task()
    collector = Collector(bus, "run", lambda proof: None, publish)
    before = exposition()
    collector.expect([task])
    async with asyncio.timeout(100):
        await collector.take([task])
    assert fires("CepoGroupsLost", before=before)
    assert fires("CepoGroupsLost", before=exposition()) == []


async def test_groups_that_come_back_again_and_again_are_an_alert() -> None:
    async def broken(task: Any) -> RolloutGroup:
        raise RuntimeError("no engine")

    before, begun = exposition(), counted("cepo_redeliveries_total", stage="rollout")
    await work(broken, 4, lambda: counted("cepo_redeliveries_total", stage="rollout") > begun + 20)
    assert {labels["stage"] for labels in fires("CepoRedeliveries", before=before)} == {"rollout"}


async def test_a_group_that_nobody_finishes_is_an_alert(redis_server: RedisServer) -> None:
    bus, stop = RedisBus(redis_server.url), asyncio.Event()
    long_ago = int((time.time() - 16 * 60) * 1000)
    entry = {"type": "PromptTask", "body": to_bytes(make_task())}
    await bus._redis.xadd("{cepo}:rollout", entry, id=f"{long_ago}-0")

    async def never(task: Any) -> RolloutGroup:
        await stop.wait()
        raise UserError("it is over")

    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        group.create_task(StageLoop(bus, Stage.ROLLOUT, never, claim_seconds=0.2).run(stop))
        while not counted("cepo_queue_oldest_seconds", stage="rollout"):
            await asyncio.sleep(0.01)
        found = fires("CepoQueueStuck")
        stop.set()
    await bus.close()
    assert {labels["stage"] for labels in found} == {"rollout"}


async def test_an_engine_that_cannot_load_what_is_published_is_two_alerts(tmp_path: Path) -> None:
    await complete(tmp_path / "ahead")
    before, bus = exposition(), MemoryBus()

    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        raise Unreachable("the trainer does not answer")

    class Loading(ToyEngine):
        """An engine that fetches every adapter that it is asked to load."""

        async def load(self, policy: PolicyRef) -> PolicyProof:
            with loading(policy):
                if policy.version:
                    await cache.folder(policy)
                return self.proof(policy)

    cache, failures = AdapterCache(tmp_path / "cache", fetch, keep=2), counted("cepo_engine_load_failures_total")
    async with asyncio.timeout(100), resident(Loading(), bus, cache):
        while counted("cepo_engine_load_failures_total") == failures:
            await bus.announce(POLICY)
            await asyncio.sleep(0.01)
    assert {labels["service"] for labels in fires("CepoLoadFailures", before=before)} == set(SERVICES)
    assert {labels["service"] for labels in fires("CepoLagBeyondBound", before=before)} == {"rollout", "teacher"}


async def test_graders_that_run_out_of_time_are_an_alert() -> None:
    before = exposition()
    async with GraderPool(1, deadline_seconds=0.3) as pool:
        await pool.grade(
            [Item("so \\boxed{\\sum_{n=1}^{10^6} n^{n}}", "7", "unevaluated"), *[Item("\\boxed{7}", "7")] * 3]
        )
    assert fires("CepoGradersFail", before=before) == [{}]
    assert fires("CepoGradersFail", before=exposition()) == []


async def test_a_service_that_is_not_ready_or_does_not_answer_is_an_alert(free_port: Callable[[], int]) -> None:
    settings = Settings(http_port=free_port(), grpc_port=free_port(), token="secret")
    stop, up = asyncio.Event(), asyncio.Event()

    async def idle(_: asyncio.Event) -> None:
        await up.wait()
        service.ready.set()
        await stop.wait()

    async def scrape() -> str | None:
        headers = {"Authorization": "Bearer secret"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.http_port}", headers=headers) as client:
            with suppress(httpx.ConnectError):
                return (await client.get("/metrics")).text
        return None

    service = chassis.Service("teacher", "toy", lambda server: None, idle)
    running = asyncio.create_task(chassis.run(service, settings))
    async with asyncio.timeout(100):
        while (text := await scrape()) is None:
            await asyncio.sleep(0.05)
        assert fires("CepoServiceNotReady", {"teacher": text}) == [{"job": "cepo", "service": "teacher"}]
        up.set()
        await service.ready.wait()
        answering = {**exposition(), "teacher": await scrape()}
        assert fires("CepoServiceNotReady", answering) == fires("CepoServiceDown", answering) == []
        stop.set()
        await running
    silent = {**answering, "teacher": await scrape()}
    assert fires("CepoServiceDown", silent) == [{"job": "cepo", "service": "teacher"}]
    gone = {name: text for name, text in answering.items() if name != "teacher"}
    assert fires("CepoServiceDown", gone) == [{"job": "cepo", "service": "teacher"}]


def test_no_alert_was_left_out() -> None:
    assert set(re.findall(r'"(Cepo\w+)"', Path(__file__).read_text())) == set(RULES)


def test_the_operator_gets_the_same_alerts() -> None:
    operator = yaml.safe_load((K8S / "components" / "monitoring" / "rules.yaml").read_text())
    assert operator["spec"] == yaml.safe_load((K8S.parent / "prometheus" / "alerts.yml").read_text())
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in RULES.values())
