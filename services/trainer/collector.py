"""Groups of a step, each exactly once: finished, failed, or refused because its weights are not proven."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from cepo.bus import Bus, ready
from cepo.contracts import EvidencedGroup, GroupFailed, Hop, PolicyProof, PromptTask, ScoredGroup, Stage
from cepo.stage import consumer_name, task_of

Prover = Callable[[PolicyProof], str | None]
"""Says why a proof is not accepted; None when it is."""
BATCH = 8
"""Groups read at once: larger replies are slower to take in, and hold back what others wait for."""
log = logging.getLogger(__name__)


class Collector:
    """Reads the run's ready stream; what was not asked for, or comes twice, is dropped."""

    def __init__(self, bus: Bus, run: str, prove: Prover) -> None:
        self._bus = bus
        self._stream = ready(run)
        self._prove = prove
        self._consumer = consumer_name()
        self._expected: dict[str, PromptTask] = {}
        self._held: dict[str, EvidencedGroup | GroupFailed] = {}

    def expect(self, tasks: Sequence[PromptTask]) -> None:
        """Names the groups that will be taken later; only they are kept."""
        self._expected.update((task.group_id, task) for task in tasks)

    async def take(self, tasks: Sequence[PromptTask]) -> list[EvidencedGroup | GroupFailed]:
        """The groups of these tasks, in their order; waits until each has come or failed."""
        wanted = [task.group_id for task in tasks]
        while any(group_id not in self._held for group_id in wanted):
            for item in await self._bus.receive(self._stream, self._consumer, BATCH, wait_seconds=0.5):
                self._keep(item.hop)
                await self._bus.hop(item, self._stream, None)
        for group_id in wanted:
            del self._expected[group_id]
        return [self._held.pop(group_id) for group_id in wanted]

    def _keep(self, hop: Hop) -> None:
        task = task_of(hop)
        if self._expected.get(task.group_id) != task or task.group_id in self._held:
            log.info("dropped %s: not asked for, or here already", task.group_id)
            return
        group = EvidencedGroup(scored=hop) if isinstance(hop, ScoredGroup) else hop
        assert isinstance(group, EvidencedGroup | GroupFailed)
        refusal = self._refusal(group)
        if isinstance(group, GroupFailed):
            log.warning("%s failed in %s: %s", task.group_id, group.stage.name, group.error)
        elif refusal is not None:
            log.error("%s refused after %s: %s", task.group_id, refusal.stage.name, refusal.error)
            group = refusal
        self._held[task.group_id] = group

    def _refusal(self, group: EvidencedGroup | GroupFailed) -> GroupFailed | None:
        """A failed group in the place of one whose weights are not proven."""
        if isinstance(group, GroupFailed):
            return None
        sampled = [group.scored.rollout.proof] if Stage.ROLLOUT in group.task.route else []
        proofs = [*((Stage.ROLLOUT, proof) for proof in sampled), *((Stage.TEACH, proof) for proof in group.proofs)]
        for stage, proof in proofs:
            error = self._prove(proof)
            if error is not None:
                return GroupFailed(task=group.task, stage=stage, error=error, deliveries=0)
        return None
