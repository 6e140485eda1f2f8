"""Which policy samples each step in flight, and which teacher scores it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from cepo.messages.groups import BASE_POLICY, PolicyRef


@dataclass(frozen=True)
class Pinned:
    """The two policies that the tasks of one step name."""

    policy: PolicyRef
    """Samples the responses."""
    teacher: PolicyRef
    """Scores them."""


@dataclass(frozen=True)
class Pipeline:
    """The steps in flight: `next_step`, and the `lag` steps after it, whose tasks are published already.

    The tasks of step s are published when step s - 1 - lag ends and name the newest policy of that moment, which is
    version max(0, s - lag). With vN for version N of the policy (v0 is the base model):

        lag = 0 (on-policy)                       lag = 1 (one step off-policy)

        next_step  pinned                         next_step  pinned
        0          step 0: v0                     0          step 0: v0, step 1: v0
        1          step 1: v1                     1          step 1: v0, step 2: v1
        2          step 2: v2                     2          step 2: v1, step 3: v2
    """

    next_step: int
    pinned: tuple[Pinned, ...]
    """The policies of step `next_step`, of the step after it, and so on; the last are the newest."""

    @classmethod
    def start(cls, lag: int) -> Self:
        """The pipeline of a run before its first step: every step in flight samples from the base model."""
        return cls(0, (Pinned(BASE_POLICY, BASE_POLICY),) * (lag + 1))

    @property
    def steps(self) -> range:
        """The steps in flight."""
        return range(self.next_step, self.next_step + len(self.pinned))

    @property
    def newest(self) -> Pinned:
        return self.pinned[-1]

    def of(self, step: int) -> Pinned:
        """The policies of a step in flight."""
        return self.pinned[step - self.next_step]

    def advanced(self, policy: PolicyRef, teacher: PolicyRef) -> Pipeline:
        """The pipeline after `next_step` ended with a new policy: one more step is in flight, pinned to it."""
        return Pipeline(self.next_step + 1, (*self.pinned[1:], Pinned(policy, teacher)))

    def renewed(self, policy: PolicyRef) -> Pipeline:
        """The pipeline with another policy as the newest, which also is its own teacher if the old one was."""
        *older, newest = self.pinned
        teacher = policy if newest.teacher == newest.policy else newest.teacher
        return Pipeline(self.next_step, (*older, Pinned(policy, teacher)))

    def resized(self, lag: int) -> Pipeline:
        """The same policies with another lag, for a run that resumes with a changed `loop.lag`.

        A shorter lag drops the oldest policies; a longer lag repeats the oldest, as older ones are not known.
        """
        padded = self.pinned[:1] * (lag + 1) + self.pinned
        return Pipeline(self.next_step, padded[-(lag + 1) :])
