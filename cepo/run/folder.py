"""The run folder: config.toml, changes.jsonl, problems/, excluded.json, images/, metrics.jsonl, failures.jsonl,
status.json, checkpoints/, adapters/, rollouts/ and logs/.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w

from cepo.errors import UserError
from cepo.net.files import append_lines, make_folder, replace_file
from cepo.run.lines import Lines, Row, parsed
from cepo.run.rollouts import Rollouts

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

Excluded = dict[str, dict[int, str]]
ID_DIGITS = 8
"""Of the digest in a derived run id."""


class RunDir:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.name = run_id(self.path.name)
        """The run's id in messages, streams and metrics."""

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def changes(self) -> Path:
        """The keys that were changed when the run was resumed, one per line, with both values."""
        return self.path / "changes.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def failures(self) -> Path:
        """Groups and samples that failed for good, with the reasons."""
        return self.path / "failures.jsonl"

    @property
    def groups(self) -> Path:
        """The groups that arrived from outside, in the order of their arrival."""
        return self.path / "groups.jsonl"

    @property
    def status(self) -> Path:
        """The trainer's phase and step; the trainer replaces the file every second."""
        return self.path / "status.json"

    @property
    def adapters(self) -> Path:
        return self.path / "adapters"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def problems(self) -> Path:
        """The problems that the run trains and evaluates on, one JSON Lines file each, and their digests."""
        return self.path / "problems"

    @property
    def images(self) -> Path:
        return self.path / "images"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def launcher_lock(self) -> Path:
        """Locked by the launcher of the run, while it runs."""
        return self.path / "launcher.lock"

    @property
    def trainer_lock(self) -> Path:
        """Locked by the trainer of the run, while it runs."""
        return self.path / "trainer.lock"

    @property
    def excluded(self) -> Path:
        """Rows of train and eval that the verifier cannot grade, with the reasons, as in {"train": {"4": "..."}}."""
        return self.path / "excluded.json"

    def check(self, *, resume: bool) -> None:
        """Checks that a run can start here, or resume.

        Raises:
            UserError: the folder holds a run already, or holds none to resume.
        """
        exists = self.config.is_file()
        if exists and not resume:
            command = f"cepo resume {shlex.quote(str(self.path))}"
            raise UserError(f"{self.path} holds a run already; continue it with `{command}`, or give another --run-dir")
        if resume and not exists:
            raise UserError(f"{self.path} holds no run to resume; give the folder of one")

    def create(self, config: RunConfig, *, resume: bool, excluded: Excluded | None = None) -> None:
        """Makes the folder and writes the resolved config; a resumed run keeps its excluded rows.

        Raises:
            UserError: the folder holds a run already, or holds none to resume.
        """
        self.check(resume=resume)
        for folder in (self.path, self.adapters, self.checkpoints, self.rollouts, self.logs):
            make_folder(folder)
        if excluded and not resume:
            replace_file(self.excluded, json.dumps(excluded, indent=2) + "\n")
        replace_file(self.config, tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)).encode())

    def excluded_rows(self) -> Excluded:
        """The rows of each set that the run leaves out, with the reasons, as in `{"train": {4: "..."}}`.

        Raises:
            UserError: excluded.json is not JSON.
        """
        try:
            excluded = json.loads(self.excluded.read_text()) if self.excluded.is_file() else {}
        except ValueError as error:
            raise UserError(f"{self.excluded} is damaged ({error}); restore it from a copy") from error
        return {name: {int(row): reason for row, reason in rows.items()} for name, rows in excluded.items()}

    def append(self, row: Row) -> None:
        """Adds one step to metrics.jsonl."""
        append_lines(self.metrics, lines_of([row]))

    def append_failures(self, rows: Sequence[Row]) -> None:
        """Adds the failures of a step to failures.jsonl; each row names its step."""
        if rows:
            append_lines(self.failures, lines_of(rows))

    def append_changes(self, rows: Sequence[Row]) -> None:
        """Adds what a resume changed to changes.jsonl."""
        if rows:
            append_lines(self.changes, lines_of(rows))

    def write_status(self, status: Row) -> None:
        """Replaces status.json."""
        replace_file(self.status, json.dumps(status).encode() + b"\n")

    def notes(self) -> list[str]:
        """What the trainer wanted the user to know, from status.json; none if there is no such file."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return list(json.loads(self.status.read_bytes()).get("notes", []))
        return []

    def rows(self) -> list[Row]:
        """The steps so far; a last line that a crash cut short is left out."""
        return Lines(self.metrics).refresh()

    def rollouts_of(self, step: int) -> Path:
        """The path of a step's groups; a large file has `.gz` after this name (`cepo.run.rollouts`)."""
        return self.rollouts / f"step-{step:06d}.jsonl"

    def truncate(self, step: int) -> None:
        """Drops the steps from `step` on, because the trainer repeats them. The lines that stay keep their bytes."""
        for path in (self.metrics, self.failures):
            lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
            kept = [line + b"\n" for line in lines if any(row.get("step", step) < step for row in parsed(line))]
            replace_file(path, b"".join(kept))
        Rollouts(self.rollouts).truncate(step)


def lines_of(rows: Sequence[Row]) -> bytes:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def run_id(folder: str) -> str:
    """The id of a run from the name of its folder: the name itself, if it has only letters, digits and `._+-`.

    In any other name these letters are kept, and a digest of the whole name is added, so that ids stay unique.

    >>> run_id("gsm8k-1"), run_id("my run")
    ('gsm8k-1', 'my-run-d33e7609')
    """
    if re.fullmatch(r"[A-Za-z0-9._+-]+", folder):
        return folder
    plain = unicodedata.normalize("NFKD", folder).encode("ascii", "ignore").decode()
    words = re.findall(r"[A-Za-z0-9._+-]+", plain)
    digest = hashlib.sha256(folder.encode("utf-8", "surrogateescape")).hexdigest()[:ID_DIGITS]
    return "-".join([*words, digest])
