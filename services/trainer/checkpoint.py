"""Checkpoints of a run, from which it resumes bit for bit.

A checkpoint holds the adapter, the optimizer, the auxiliary model, the RNG state, the averaged teacher, the digest of
the problems, and the pipeline: the next step and the policies of the steps in flight. Lambda, the order of the data and
the learning rate are functions of the step and are not stored.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cepo.errors import UserError
from cepo.messages.groups import PolicyRef
from cepo.net.files import replace_folder
from services.trainer.learning.learner import Learner
from services.trainer.pipeline import Pinned, Pipeline
from services.trainer.publisher import Expected, Publisher
from services.trainer.teacher import Teacher

FILE = "state.pt"


class Checkpoints:
    """Writes and reads the folders `checkpoints/step-N`; a folder appears only once it is complete."""

    def __init__(
        self,
        folder: Path,
        learner: Learner,
        publisher: Publisher,
        teacher: Teacher,
        every: int,
        keep: int,
        keep_policies: int = 0,
        problems_sha256: str = "",
    ) -> None:
        """Takes the objects whose state is saved.

        Args:
            every: steps between checkpoints.
            keep: the number of checkpoints to keep, the newest ones.
            keep_policies: the number of adapter versions to keep; 0 keeps all.
            problems_sha256: the digest of the problems that the run trains on.
        """
        self._folder = folder
        self._learner = learner
        self._publisher = publisher
        self._teacher = teacher
        self._every = every
        self._keep = keep
        self._keep_policies = keep_policies
        self._problems_sha256 = problems_sha256
        self._named: set[str] = set()
        """The adapter folders that the kept checkpoints refer to."""

    def maybe_save(self, pipeline: Pipeline, *, last: bool) -> None:
        """Saves every `every` steps and after the last, then deletes adapters that nothing refers to any more."""
        if last or pipeline.next_step % self._every == 0:
            self.save(pipeline)
        if self._keep_policies:
            policies = {policy for pinned in pipeline.pinned for policy in (pinned.policy, pinned.teacher)}
            in_use = {self._publisher.expected(policy).folder for policy in policies}
            oldest = pipeline.newest.policy.version - self._keep_policies + 1
            self._publisher.drop_before(oldest, in_use | self._named)

    def save(self, pipeline: Pipeline) -> None:
        """Writes a checkpoint and deletes the oldest ones above `keep`."""
        state = {
            "next_step": pipeline.next_step,
            "policies": [self._proven(pinned.policy) for pinned in pipeline.pinned],
            "teachers": [self._proven(pinned.teacher) for pinned in pipeline.pinned],
            "average": self._teacher.average,
            "problems_sha256": self._problems_sha256,
            **self._learner.state_dict(),
        }
        folder = self._folder / f"step-{pipeline.next_step:06d}"
        with replace_folder(folder) as scratch, (scratch / FILE).open("wb") as file:
            torch.save(state, file)
        for old in self._saved()[: -self._keep]:
            shutil.rmtree(old)
        self._named = set().union(*map(_named, self._saved()))

    def restore(self) -> Pipeline | None:
        """Loads the newest checkpoint into the learner, the teacher and the publisher; None if there is none.

        Raises:
            UserError: the checkpoint does not fit the run's adapter or auxiliary model, or the run has other problems.
        """
        saved = self._saved()
        if not saved:
            return None
        self._named = set().union(*map(_named, saved))
        state: dict[str, Any] = torch.load(saved[-1] / FILE, weights_only=True)
        if (trained_on := state.get("problems_sha256", self._problems_sha256)) != self._problems_sha256:
            raise UserError(
                f"{saved[-1]} was trained on problems with sha256 {trained_on}, and problems/train.jsonl of the run "
                f"folder has {self._problems_sha256}; restore that file and its line in problems/SHA256SUMS"
            )
        try:
            self._learner.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError) as error:
            sections = "lora and algorithm sections"
            raise UserError(f"{saved[-1]} does not fit this run's {sections}; resume with the same ones") from error
        self._teacher.average = state["average"]
        policies, teachers = (tuple(map(self._recalled, state[key])) for key in ("policies", "teachers"))
        return Pipeline(state["next_step"], tuple(map(Pinned, policies, teachers)))

    def _proven(self, policy: PolicyRef) -> dict[str, Any]:
        return {**policy.model_dump(), **vars(self._publisher.expected(policy))}

    def _recalled(self, row: Mapping[str, Any]) -> PolicyRef:
        policy = PolicyRef(version=row["version"], sha256=row["sha256"])
        self._publisher.recall(policy, Expected(row["bound_modules"], row["canary_logp"], row["folder"]))
        return policy

    def _saved(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"))


def _named(saved: Path) -> set[str]:
    """The adapter folders that a run needs when it resumes from a checkpoint."""
    state: dict[str, Any] = torch.load(saved / FILE, weights_only=True, mmap=True)
    return {row["folder"] for key in ("policies", "teachers") for row in state[key]}
