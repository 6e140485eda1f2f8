"""Groups that arrive from outside: kept in the run folder in the order of their arrival, which gives each its step.

The first `sampling.prompts` groups make step 0, the next ones step 1, and so on. A group is on disk before its sender
is told that it was taken, so a trainer that dies resumes with the same groups in the same steps.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cepo.errors import UserError
from cepo.messages.groups import RolloutGroup, ScoredGroup
from cepo.messages.wire import STAGE_MESSAGES, from_bytes, to_bytes
from cepo.net.files import append_lines
from cepo.run.folder import lines_of
from cepo.run.lines import Lines, Row

Arrived = RolloutGroup | ScoredGroup
"""A group that has yet to be graded, or one that came with its rewards."""


class Inbox:
    """The groups of a run, one line each in `groups.jsonl`."""

    def __init__(self, path: Path, prompts: int) -> None:
        """Reads the groups that arrived before.

        Args:
            prompts: the number of groups of a step.
        """
        self._path = path
        self._prompts = prompts
        self._rows: dict[str, Row] = {row["id"]: row for row in Lines(path).refresh()}
        """By the id that the sender gave, in the order of arrival."""

    @property
    def next_place(self) -> tuple[int, int]:
        """The step of the next group, and its index in the step."""
        return divmod(len(self._rows), self._prompts)

    def missing(self, step: int) -> int:
        """The number of groups that a step still waits for."""
        return min(self._prompts, max(0, (step + 1) * self._prompts - len(self._rows)))

    def place_of(self, group_id: str, content: bytes) -> tuple[int, int] | None:
        """The step and the index of a group that arrived before; None if none has this id.

        Raises:
            UserError: another group has this id.
        """
        row = self._rows.get(group_id)
        if row is None:
            return None
        if row["sha256"] != _digest(content):
            raise UserError(f"id: another group {group_id!r} has arrived before; give this one an id of its own")
        return row["step"], row["index"]

    def add(self, group_id: str, content: bytes, group: Arrived) -> None:
        """Writes a group at the next place.

        Raises:
            StorageError: the file cannot be written; the group has not arrived.
        """
        row = {
            "id": group_id,
            "step": group.task.step,
            "index": group.task.index,
            "sha256": _digest(content),
            "kind": type(group).__name__,
            "message": base64.b64encode(to_bytes(group)).decode(),
        }
        append_lines(self._path, lines_of([row]))
        self._rows[group_id] = row

    def of_step(self, step: int) -> list[Arrived]:
        """The groups of a step that have arrived so far."""
        rows = [row for row in self._rows.values() if row["step"] == step]
        return [_group(row) for row in rows]


def _group(row: Row) -> Arrived:
    group = from_bytes(STAGE_MESSAGES[row["kind"]], base64.b64decode(row["message"]))
    assert isinstance(group, RolloutGroup | ScoredGroup)
    return group


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
