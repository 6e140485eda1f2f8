"""Reads a JSON Lines file that another process appends to, such as metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Lines:
    """The rows of one JSON Lines file; each line is parsed once, however often the file is refreshed.

    A last line without a newline is left for the next refresh. When the file was replaced or shortened (a resumed
    trainer drops the steps that it repeats), the rows start over.

    Example:
        metrics = Lines(run.metrics)
        metrics.refresh()  # [{"step": 0, "reward/mean": 0.25}]
        metrics.refresh()  # parses only what was appended since
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._offset = 0
        self._lock = threading.Lock()
        self.rows: list[Row] = []
        """Never changed in place, so another thread may read the list during a refresh."""
        self.generation = 0
        """How often the file was replaced; a reader that sees a new number starts over."""

    def refresh(self) -> list[Row]:
        """Parses the lines that were appended and returns all rows so far; a missing file keeps the rows."""
        with self._lock:
            try:
                with self._path.open("rb") as file:
                    self._start_over_if_replaced(os.fstat(file.fileno()))
                    file.seek(self._offset)
                    whole, _, _ = file.read().rpartition(b"\n")
            except FileNotFoundError:
                return self.rows
            if whole:
                self._offset += len(whole) + 1
                self.rows = [*self.rows, *parsed(whole)]
            return self.rows

    def _start_over_if_replaced(self, stat: os.stat_result) -> None:
        if self._inode not in (0, stat.st_ino) or stat.st_size < self._offset:
            self.generation += 1
            self._offset, self.rows = 0, []
        self._inode = stat.st_ino


def parsed(text: bytes) -> list[Row]:
    r"""The JSON objects among lines; other lines are left out. NaN and infinity become None: JSON has neither.

    Example:
        parsed(b'{"step": 0, "loss": NaN}\nno json')  # [{"step": 0, "loss": None}]
    """
    rows: list[Row] = []
    for line in text.split(b"\n"):
        with contextlib.suppress(ValueError):
            row = json.loads(line, parse_constant=lambda _: None)
            if isinstance(row, dict):
                rows.append(row)
    return rows
