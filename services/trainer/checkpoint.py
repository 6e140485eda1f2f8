"""What a run needs to go on bit for bit.

Adapter, optimiser, auxiliary model, RNG, teacher, the next step and the policies still in flight.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cepo.errors import UserError
from cepo.messages.groups import PolicyRef
from services.trainer.learning.learner import Learner
from services.trainer.publisher import Expected, Publisher
from services.trainer.teacher import Teacher

FILE = "state.pt"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: lambda, the data order and the learning rate are functions of the step."""

    next_step: int
    policies: tuple[PolicyRef, ...]
    """The newest last; as many as can be in flight."""
    teachers: tuple[PolicyRef, ...]
    """The teacher of each."""


class Checkpoints:
    """Folders checkpoints/step-N, each whole or not there; the newest are kept."""

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
        self._folder = folder
        self._learner = learner
        self._publisher = publisher
        self._teacher = teacher
        self._every = every
        self._keep = keep
        self._keep_policies = keep_policies
        self._problems_sha256 = problems_sha256
        self._named: set[str] = set()
        """Folders of the adapters that the kept checkpoints name."""

    def maybe_save(self, progress: Progress, *, last: bool) -> None:
        """Saves every `every` steps and at the end, then drops the adapters that nothing names any more."""
        if last or progress.next_step % self._every == 0:
            self.save(progress)
        if self._keep_policies:
            in_use = {self._publisher.expected(policy).folder for policy in (*progress.policies, *progress.teachers)}
            oldest = progress.policies[-1].version - self._keep_policies + 1
            self._publisher.drop_before(oldest, in_use | self._named)

    def save(self, progress: Progress) -> None:
        state = {
            "next_step": progress.next_step,
            "policies": [self._proven(policy) for policy in progress.policies],
            "teachers": [self._proven(policy) for policy in progress.teachers],
            "average": self._teacher.average,
            "problems_sha256": self._problems_sha256,
            **self._learner.state_dict(),
        }
        folder = self._folder / f"step-{progress.next_step:06d}"
        scratch = folder.with_name(f".{folder.name}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        with (scratch / FILE).open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
        for old in self._saved()[: -self._keep]:
            shutil.rmtree(old)
        self._named = set().union(*map(_named, self._saved()))

    def restore(self) -> Progress | None:
        """Puts the newest checkpoint into the learner; None when there is none.

        Raises:
            UserError: it does not fit the run's adapter or its auxiliary model, or was trained on other problems.
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
        return Progress(state["next_step"], policies, teachers)

    def _proven(self, policy: PolicyRef) -> dict[str, Any]:
        return {**policy.model_dump(), **vars(self._publisher.expected(policy))}

    def _recalled(self, row: Mapping[str, Any]) -> PolicyRef:
        policy = PolicyRef(version=row["version"], sha256=row["sha256"])
        self._publisher.recall(policy, Expected(row["bound_modules"], row["canary_logp"], row["folder"]))
        return policy

    def _saved(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"))


def _named(saved: Path) -> set[str]:
    """Folders of the adapters that a run which goes on from a checkpoint asks for."""
    state: dict[str, Any] = torch.load(saved / FILE, weights_only=True, mmap=True)
    return {row["folder"] for key in ("policies", "teachers") for row in state[key]}
