"""A file of JSON lines that another process appends to, and replaces when it goes back to an earlier step."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Lines:
    """Its rows so far; each line is read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = 0
        self._offset = 0
        self._reading = threading.Lock()
        self.rows: list[Row] = []
        """Never changed in place, so that it may be read while another thread refreshes."""
        self.generation = 0
        """Counts how often the file was replaced, so that a reader knows to start over."""

    def refresh(self) -> None:
        """Reads what is new; a last line without an end is left for the next time."""
        with self._reading:
            self._refresh()

    def _refresh(self) -> None:
        try:
            with self._path.open("rb") as file:
                self._begin_anew_if_replaced(file.fileno())
                file.seek(self._offset)
                whole, _, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return
        if whole:
            self._offset += len(whole) + 1
            self.rows = [*self.rows, *parsed(whole)]

    def _begin_anew_if_replaced(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        if self._file not in (0, found.st_ino) or found.st_size < self._offset:
            self.generation += 1
            self._offset, self.rows = 0, []
        self._file = found.st_ino


def parsed(text: bytes) -> list[Row]:
    """The rows of whole lines; what is no JSON object is left out, NaN and infinity are None, as JSON has neither."""
    rows: list[Row] = []
    for line in text.split(b"\n"):
        with contextlib.suppress(ValueError):
            row = json.loads(line, parse_constant=lambda _: None)
            if isinstance(row, dict):
                rows.append(row)
    return rows
