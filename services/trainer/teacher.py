"""The teacher policy of each version of the trained policy (arXiv:2605.19436, Table 4).

source      teacher of version v
actor       version v
reference   version 0, the base model
sync        version floor(v / k) * k, where k = sync_every
ema         the moving average of the versions up to v, which is published as a policy of its own
"""

from __future__ import annotations

import asyncio
import math

from torch import Tensor

from cepo.algo.base import Metrics
from cepo.algo.ema import ema
from cepo.algo.teacher import TeacherSource
from cepo.messages.groups import BASE_POLICY, PolicyRef, PromptTask
from services.trainer.learning.learner import Learner
from services.trainer.publisher import Publisher


class Teacher:
    """Chooses, and for `ema` computes, the teacher of each version that is published."""

    def __init__(self, source: TeacherSource, learner: Learner, publisher: Publisher) -> None:
        self._source = source
        self._learner = learner
        self._publisher = publisher
        self.average: dict[str, Tensor] = {}
        """The moving average of the adapter in float32; it starts as the base model (B = 0). Empty unless `ema`."""
        if source.source == "ema":
            self.average = {name: value.float() for name, value in learner.adapter().items()}

    async def of(self, policy: PolicyRef, before: PolicyRef) -> PolicyRef:
        """The teacher of the policy that was just published; called once for every version, in order.

        Args:
            before: the teacher of the previous version.
        """
        match self._source.source:
            case "reference":
                return BASE_POLICY
            case "sync":
                assert self._source.sync_every is not None
                return policy if policy.version % self._source.sync_every == 0 else before
            case "ema":
                assert self._source.ema_rate is not None
                adapter = await asyncio.to_thread(self._learner.adapter)
                self.average = ema(self.average, adapter, self._source.ema_rate)
                return await self._publisher.publish_average(policy.version, self.average)
        return policy

    def metrics(self, task: PromptTask) -> Metrics:
        """How many versions a task's teacher is behind its policy, and the norm of (adapter - average)."""
        adapter = self._learner.adapter() if self.average else {}
        squares = [float((value - self.average[name]).square().sum()) for name, value in adapter.items()]
        behind = task.policy.version - task.teacher.version
        return {"teacher/behind": float(behind), "teacher/distance": math.sqrt(sum(squares))}
