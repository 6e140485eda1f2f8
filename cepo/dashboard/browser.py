"""Searches the groups of a run for the dashboard."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from cepo.run.lines import Row
from cepo.run.rollout_index import INDEX_ERRORS, RolloutIndex, Search
from cepo.run.rollouts import Rollouts, add_file


class GroupBrowser:
    """Searches by the index of the run folder; without one, by an index in memory that follows the files."""

    def __init__(self, rollouts: Rollouts) -> None:
        self.rollouts = rollouts
        self._lock = threading.Lock()
        self._memory = RolloutIndex.in_memory()
        self._read: dict[tuple[str, int], tuple[int, int]] = {}
        """Of each file in the index in memory, the time of its last change and its size."""

    def search(self, search: Search, offset: int, limit: int) -> tuple[int, list[Row]]:
        """The number of responses that a search finds, and some of them in its order."""
        with self._index() as index:
            return index.search(search, offset, limit)

    def summary(self) -> Row:
        """The values that a search can filter by, with the number of responses of each."""
        with self._index() as index:
            return index.summary()

    def group(self, source: str, number: int, at: int) -> Row | None:
        """A group of a step or version; None if the run wrote no such group."""
        with self._index() as index:
            place = index.place(source, number, at)
        return place and self.rollouts.at(source, number, place)

    @contextmanager
    def _index(self) -> Iterator[RolloutIndex]:
        with ExitStack() as stack:
            try:
                index = stack.enter_context(RolloutIndex.reading(self.rollouts.index_path))
            except INDEX_ERRORS:
                stack.enter_context(self._lock)
                self._follow()
                index = self._memory
            yield index

    def _follow(self) -> None:
        """Brings the index in memory up to date."""
        files = {(file.source, file.number): file for file in self.rollouts.files()}
        for key in self._read.keys() - files.keys():
            self._memory.remove(*key)
            del self._read[key]
        for key, file in files.items():
            stat = file.path.stat()
            if self._read.get(key) != (now := (stat.st_mtime_ns, stat.st_size)):
                add_file(self._memory, file)
                self._read[key] = now
