"""Checkpoints of a run, from which it resumes bit for bit.

A checkpoint holds the adapter, the optimizer, the auxiliary model, the RNG state, the averaged teacher, the digest of
the problems, the pass rates of a curriculum, and the pipeline: the next step and the policies of the steps in flight.
Lambda, the order of the data and the learning rate are functions of the step and are not stored.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from cepo.errors import PolicyError, UserError
from cepo.messages.groups import PolicyRef
from cepo.net.files import replace_folder
from cepo.run.best import Best
from cepo.service import adapters
from services.trainer.finite import diverged, first_not_finite
from services.trainer.learning.learner import Learner
from services.trainer.pipeline import Pinned, Pipeline
from services.trainer.publisher import Expected, Publisher
from services.trainer.sources import PassHistory
from services.trainer.teacher import Teacher

FILE = "state.pt"
Note = Callable[[str], None]
log = logging.getLogger(__name__)


class DamagedCheckpoint(PolicyError):
    """A checkpoint, or an adapter that it names, cannot be read."""


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
        note: Note = log.warning,
        history: PassHistory | None = None,
    ) -> None:
        """Takes the objects whose state is saved.

        Args:
            every: steps between checkpoints.
            keep: the number of checkpoints to keep, the newest ones.
            keep_policies: the number of adapter versions to keep; 0 keeps all.
            problems_sha256: the digest of the problems that the run trains on.
            note: tells the user what was damaged.
            history: the pass rates of a run with a curriculum.
        """
        self._folder = folder
        self._learner = learner
        self._publisher = publisher
        self._teacher = teacher
        self._every = every
        self._keep = keep
        self._keep_policies = keep_policies
        self._problems_sha256 = problems_sha256
        self._note = note
        self._history = history
        self.best: Best | None = None
        """The best policy so far, whose adapter is never deleted; None to keep none."""
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
            best = set() if self.best is None else {f"v{self.best.version:06d}"}
            self._publisher.drop_before(oldest, in_use | self._named | best)

    def save(self, pipeline: Pipeline) -> None:
        """Writes a checkpoint and deletes the oldest ones above `keep`.

        Raises:
            UserError: a number of the state is not finite; nothing is written.
        """
        state = {
            "next_step": pipeline.next_step,
            "policies": [self._proven(pinned.policy) for pinned in pipeline.pinned],
            "teachers": [self._proven(pinned.teacher) for pinned in pipeline.pinned],
            "average": self._teacher.average,
            "problems_sha256": self._problems_sha256,
            **self._learner.state_dict(),
            **({"pass_rates": self._history.state()} if self._history is not None else {}),
        }
        if broken := first_not_finite(state):
            raise diverged(f"{broken} is not finite after step {pipeline.next_step - 1}", self._folder.parent)
        folder = self._folder / f"step-{pipeline.next_step:06d}"
        with replace_folder(folder) as scratch, (scratch / FILE).open("wb") as file:
            torch.save(state, file)
        for old in self._saved()[: -self._keep]:
            shutil.rmtree(old)
        self._named = set().union(*map(_named, self._saved()))

    def restore(self) -> Pipeline | None:
        """Loads the newest whole checkpoint into the learner, the teacher and the publisher; None if there is none.

        Damaged checkpoints that are newer are renamed. Damaged adapters whose weights a checkpoint holds are written
        again.

        Raises:
            UserError: the checkpoint does not fit the run's adapter or auxiliary model, the run has other problems, or
                every checkpoint is damaged.
        """
        saved = self._saved()
        damage: list[tuple[Path, str]] = []
        for folder in reversed(saved):
            try:
                pipeline = self._loaded(folder)
            except DamagedCheckpoint as error:
                damage.append((folder, str(error)))
                continue
            for broken, why in damage:
                aside = broken.with_name(f"damaged-{broken.name}")
                shutil.rmtree(aside, ignore_errors=True)
                broken.rename(aside)  # it must not count among those to keep
                self._note(f"{why}; resumed from {folder}, the newest whole checkpoint")
            self._named = set().union(*map(_named, self._saved()))
            return pipeline
        if damage:
            raise UserError(
                f"{damage[0][1]}; no older checkpoint is whole. Restore {damage[0][0]} from a copy, or delete "
                f"{self._folder} to train again from the first step"
            )
        return None

    def _loaded(self, folder: Path) -> Pipeline:
        state = _read(folder)
        if (trained_on := state.get("problems_sha256", self._problems_sha256)) != self._problems_sha256:
            raise UserError(
                f"{folder} was trained on problems with sha256 {trained_on}, and problems/train.jsonl of the run "
                f"folder has {self._problems_sha256}; restore that file and its line in problems/SHA256SUMS"
            )
        try:
            self._learner.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError) as error:
            sections = "lora and algorithm sections"
            raise UserError(f"{folder} does not fit this run's {sections}; resume with the same ones") from error
        self._teacher.average = state["average"]
        if self._history is not None and "pass_rates" in state:
            self._history.load(state["pass_rates"])
        try:
            policies, teachers = (tuple(map(self._recalled, state[key])) for key in ("policies", "teachers"))
        except KeyError as error:
            raise UserError(
                f"{folder} was saved by another version of CEPO, without {error}; resume with that one"
            ) from error
        for policy in dict.fromkeys((*policies, *teachers)):
            if not self._publisher.intact(policy):
                self._write_again(policy)
        return Pipeline(state["next_step"], tuple(map(Pinned, policies, teachers)))

    def _write_again(self, policy: PolicyRef) -> None:
        """Writes the files of a damaged adapter from the checkpoint that holds its weights.

        Raises:
            DamagedCheckpoint: no checkpoint holds them.
        """
        adapter = self._publisher.folder(policy)
        for folder in reversed(self._saved()):
            with contextlib.suppress(DamagedCheckpoint):
                state = _read(folder)
                for weights in filter(None, (state["adapter"], state["average"])):
                    with self._learner.using_adapter(weights):
                        files = self._learner.adapter_files()
                    if adapters.digest(files) == policy.sha256:
                        self._publisher.write_again(policy, files)
                        self._note(f"{adapter} was damaged or missing, and was written again from {folder}")
                        return
        raise DamagedCheckpoint(f"{adapter} is damaged or missing, and no checkpoint holds its weights")

    def _proven(self, policy: PolicyRef) -> dict[str, Any]:
        return {**policy.model_dump(), **vars(self._publisher.expected(policy))}

    def _recalled(self, row: Mapping[str, Any]) -> PolicyRef:
        policy = PolicyRef(version=row["version"], sha256=row["sha256"])
        self._publisher.recall(policy, Expected(row["bound_modules"], row["canary_logps"], row["folder"]))
        return policy

    def _saved(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"))


def _read(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint.

    Raises:
        DamagedCheckpoint: the file is missing, cut short, or does not have its checksums.
    """
    file = folder / FILE
    try:
        with ZipFile(file) as archive:  # PyTorch does not compare the checksums
            if damaged := archive.testzip():
                raise DamagedCheckpoint(f"{file} is damaged: {damaged} does not have its checksum")
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{file} is missing") from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, BadZipFile, UnpicklingError) as error:
        raise DamagedCheckpoint(f"{file} is cut short or damaged ({str(error).splitlines()[0]})") from error
    return state


def _named(saved: Path) -> set[str]:
    """The adapter folders that a run needs when it resumes from a checkpoint; none if the checkpoint is damaged."""
    try:
        state: dict[str, Any] = torch.load(saved / FILE, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError):
        return set()
    return {row["folder"] for key in ("policies", "teachers") for row in state[key]}
