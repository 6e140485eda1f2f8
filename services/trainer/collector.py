"""Collects the groups of a step, each exactly once: done, failed, or rejected because of its weights.

A group is rejected if an engine cannot prove that it used the weights of the task's policy. A group that Redis has lost
(its newest writes after a crash or a failover, or an item that no worker could read) is published again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from cepo.messages.groups import EvidencedGroup, GroupFailed, PolicyProof, PromptTask, ScoredGroup, Stage
from cepo.service.bus import Bus, Delivery, ItemId, ready, stream_of
from cepo.service.metrics import PROGRESS, collected
from cepo.service.stage import consumer_name, task_of
from cepo.service.telemetry import logged
from cepo.service.tracing import TRACER, Interval

CheckProof = Callable[[PolicyProof], str | None]
"""Returns the reason to reject a proof, or None to accept it."""
Publish = Callable[[Sequence[PromptTask]], Awaitable[None]]
READ_GROUPS = 8
"""Groups read in one call; a larger reply takes longer to decode and delays everything else on the event loop."""
POLL_SECONDS = 0.25
"""The longest wait of one call, and the interval at which the queues are measured."""
MAX_REISSUES = 3
"""A group that is lost once more than this has failed."""
log = logging.getLogger(__name__)


class LossDetector:
    """Notices that a group is on no stream, also where several runs share the streams.

    A round begins with the newest item of every stream, and ends when every item up to these has left its stream, as
    finished items do. A group moves through `len(streams)` streams at most, so after as many rounds every group that
    was under way when the first round began has arrived, or is lost.
    """

    def __init__(self, bus: Bus, streams: Sequence[str]) -> None:
        self._bus = bus
        self._newest: dict[str, ItemId] = dict.fromkeys(streams, (0, 0))
        self._rounds = -1

    def restart(self) -> None:
        """Begins again, because further groups are under way."""
        self._rounds = -1

    async def passed(self) -> bool:
        """Measures the streams; returns whether every group that was under way at the restart has had its time."""
        while self._rounds < len(self._newest):
            ends = {stream: await self._bus.ends(stream) for stream in self._newest}
            if self._rounds >= 0 and any(at and at[0] <= self._newest[stream] for stream, at in ends.items()):
                return False
            self._rounds += 1
            self._newest = {stream: at[1] if at else (0, 0) for stream, at in ends.items()}
        return True


class Collector:
    """Reads the run's ready stream; groups that were not expected, and duplicates, are dropped."""

    def __init__(self, bus: Bus, run: str, check_proof: CheckProof, publish: Publish) -> None:
        """Expects no group yet.

        Args:
            publish: publishes tasks whose groups were lost once more.
        """
        self._bus = bus
        self._run = run
        self._stream = ready(run)
        self._check_proof = check_proof
        self._publish = publish
        self._consumer = consumer_name()
        self._losses = LossDetector(bus, [*map(stream_of, Stage), self._stream])
        self._reissues: dict[str, int] = {}
        self._expected: dict[str, PromptTask] = {}
        self._since: dict[str, float] = {}
        self._held: dict[str, EvidencedGroup | GroupFailed] = {}
        self._counters = collected()
        self._measured_at = 0.0
        self.exposed_seconds = 0.0
        """Total seconds in which the trainer waited for the teacher alone: no group was in an earlier stage."""

    def expect(self, tasks: Sequence[PromptTask]) -> None:
        """Announces the tasks whose groups will be taken; other groups are dropped."""
        self._expected.update((task.group_id, task) for task in tasks)
        self._since.update((task.group_id, time.time()) for task in tasks)
        self._losses.restart()
        PROGRESS.labels(self._run).set_to_current_time()

    async def take(self, tasks: Sequence[PromptTask]) -> list[EvidencedGroup | GroupFailed]:
        """Waits until the group of each task is done or has failed; returns the groups in the order of the tasks."""
        wanted = [task.group_id for task in tasks]
        self._measured_at = time.monotonic()
        while any(group_id not in self._held for group_id in wanted):
            items = await self._bus.receive(self._stream, self._consumer, READ_GROUPS, wait_seconds=POLL_SECONDS)
            for item in items:
                with logged(task_of(item.message), "READY"):
                    self._keep(item)
                await self._bus.complete(item, self._stream, None)
            await self._measure_exposed()
            if not items and await self._losses.passed():
                await self._reissue()
        for group_id in wanted:
            del self._expected[group_id], self._since[group_id]
            self._reissues.pop(group_id, None)
        return [self._held.pop(group_id) for group_id in wanted]

    async def _reissue(self) -> None:
        """Publishes the tasks of the groups that are on no stream again, or fails those that were lost too often."""
        lost = [task for group_id, task in self._expected.items() if group_id not in self._held]
        for task in lost:
            self._reissues[task.group_id] = self._reissues.get(task.group_id, 0) + 1
        hopeless = [task for task in lost if self._reissues[task.group_id] > MAX_REISSUES]
        for task in hopeless:
            error = f"lost {MAX_REISSUES + 1} times: no stream holds the group; the stream `failures` may say why"
            self._hold(GroupFailed(task=task, stage=task.route[0], error=error, deliveries=0))
        again = [task for task in lost if task not in hopeless]
        self._losses.restart()
        if again:
            log.warning("no stream holds %d groups, such as %s: publishing them again", len(again), again[0].group_id)
            self._counters["reissued"].inc(len(again))
            await self._publish(again)

    async def _measure_exposed(self) -> None:
        """Adds the time since the last call to `exposed_seconds` if groups wait for the teacher and none before it."""
        now = time.monotonic()
        if now - self._measured_at < POLL_SECONDS:
            return
        rollout, verify, teach = [await self._bus.depth(stream_of(stage)) for stage in Stage]
        if teach and not rollout and not verify:
            self.exposed_seconds += now - self._measured_at
        self._measured_at = now

    def _keep(self, item: Delivery) -> None:
        message, task = item.message, task_of(item.message)
        if self._expected.get(task.group_id) != task or task.group_id in self._held:
            log.info("dropped %s: it was not expected, or has arrived already", task.group_id)
            self._counters["dropped"].inc()
            return
        group = EvidencedGroup(scored=message) if isinstance(message, ScoredGroup) else message
        if not isinstance(group, EvidencedGroup | GroupFailed):
            log.error("dropped %s: a %s does not end a group", task.group_id, type(group).__name__)
            self._counters["dropped"].inc()
            return
        result = self._hold(group)
        if TRACER.on:
            self._trace(task, item.published_at, result)

    def _hold(self, group: EvidencedGroup | GroupFailed) -> str:
        """Keeps the group of an expected task until it is taken; returns its result, a label of the metric."""
        group_id, refusal = group.task.group_id, self._refusal(group)
        if isinstance(group, GroupFailed):
            log.warning("%s failed in %s: %s", group_id, group.stage.name, group.error)
        elif refusal is not None:
            log.error("%s rejected after %s: %s", group_id, refusal.stage.name, refusal.error)
        self._held[group_id] = refusal or group
        result = "refused" if refusal else "failed" if isinstance(group, GroupFailed) else "done"
        self._counters[result].inc()
        PROGRESS.labels(self._run).set_to_current_time()
        return result

    def _trace(self, task: PromptTask, published_at: float, result: str) -> None:
        now = time.time()
        TRACER.root(task, Interval("group", self._since[task.group_id], now), {"cepo.result": result})
        TRACER.span(task, Interval("collect", min(published_at, now), now))

    def _refusal(self, group: EvidencedGroup | GroupFailed) -> GroupFailed | None:
        """A failed group in place of a group whose weights are not proven; None if they are."""
        if isinstance(group, GroupFailed):
            return None
        sampled = [group.scored.rollout.proof] if Stage.ROLLOUT in group.task.route else []
        proofs = [*((Stage.ROLLOUT, proof) for proof in sampled), *((Stage.TEACH, proof) for proof in group.proofs)]
        for stage, proof in proofs:
            error = self._check_proof(proof)
            if error is not None:
                return GroupFailed(task=group.task, stage=stage, error=error, deliveries=0)
        return None
