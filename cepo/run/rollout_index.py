"""The index of a run's groups: what the rollout browser sorts, filters and searches, in SQLite.

It holds nothing that the files of groups do not hold, so it can be made again from them. `Rollouts` keeps it on disk
while a run trains; a dashboard without that file makes one in memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cepo.run.lines import Row

INDEX_ERRORS = (sqlite3.Error, OSError)
BUSY_SECONDS = 30.0
"""How long a writer waits for the queries of a dashboard."""
MAX_VALUES = 30
EXCERPT_CHARACTERS = 160
_TABLES = """
CREATE TABLE IF NOT EXISTS groups (
    key INTEGER PRIMARY KEY, source TEXT, number INTEGER, at INTEGER, name TEXT, asked TEXT, answer TEXT,
    start INTEGER, size INTEGER, UNIQUE (source, number, at)
);
CREATE TABLE IF NOT EXISTS responses (
    key INTEGER PRIMARY KEY, inside INTEGER, source TEXT, number INTEGER, at INTEGER, sample INTEGER, outcome TEXT,
    wrong INTEGER, reward REAL, length INTEGER, reason TEXT
);
CREATE INDEX IF NOT EXISTS by_number ON responses (source, number, at, sample);
CREATE TABLE IF NOT EXISTS texts (key INTEGER PRIMARY KEY, text TEXT);
"""
_COLUMNS = (
    "source",
    "number",
    "at",
    "sample",
    "outcome",
    "reward",
    "length",
    "reason",
    "name",
    "asked",
    "answer",
    "text",
)
ORDERS = {
    "newest": "number DESC, at, sample",
    "wrong": "wrong DESC, number DESC, at, sample",
    "longest": "length DESC, number DESC, at, sample",
    "shortest": "length, number DESC, at, sample",
    "reward": "reward DESC, number DESC, at, sample",
    "least reward": "reward IS NULL, reward, number DESC, at, sample",
}
"""The orders of a search, by name."""
Order = Literal["newest", "wrong", "longest", "shortest", "reward", "least reward"]


class Extent(NamedTuple):
    """Where a group is in its file, in bytes."""

    offset: int
    size: int


class Search(NamedTuple):
    """The conditions of a search; a field with its default does not filter."""

    text: str = ""
    """Part of a response, a prompt, an answer or a reason, in upper or lower case."""
    source: str = ""
    number: int | None = None
    """The step, or the policy version of held-out groups."""
    outcome: str = ""
    reason: str = ""
    lowest: float | None = None
    """The lowest reward."""
    highest: float | None = None
    order: Order = "newest"


class RolloutIndex:
    """One index, on disk or in memory."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextmanager
    def writing(cls, path: Path) -> Iterator[RolloutIndex]:
        """Opens the file of an index for changes, which are saved at the end of the block."""
        with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection, connection:
            connection.executescript(_TABLES)
            yield cls(connection)

    @classmethod
    @contextmanager
    def reading(cls, path: Path) -> Iterator[RolloutIndex]:
        """Opens the file of an index for searches.

        Raises:
            sqlite3.Error: there is no such file, or it holds no index.
        """
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as opened:
            opened.execute("SELECT key FROM groups LIMIT 1").fetchall()
            yield cls(opened)

    @classmethod
    def in_memory(cls) -> RolloutIndex:
        """An empty index that several threads may read in turn."""
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        connection.executescript(_TABLES)
        return cls(connection)

    def files(self) -> set[tuple[str, int]]:
        """Source and number of the files whose groups are here."""
        return set(self._connection.execute("SELECT DISTINCT source, number FROM groups"))

    def add(self, source: str, number: int, groups: Sequence[Row], places: Sequence[Extent]) -> None:
        """Adds the groups of a file, in place of those that it had."""
        self.remove(source, number)
        for at, (group, place) in enumerate(zip(groups, places, strict=True)):
            asked = "\n\n".join(str(message.get("content", "")) for message in group.get("prompt", []))
            row = (source, number, at, group.get("group"), asked, group.get("answer"), *place)
            inside = self._connection.execute("INSERT INTO groups VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", row).lastrowid
            for sample, each in enumerate(group.get("samples", [])):
                self._add_response((inside, source, number, at, sample), each)

    def _add_response(self, place: tuple[Any, ...], sample: Row) -> None:
        outcome, reward = str(sample.get("outcome", "")), sample.get("reward")
        length = len(sample.get("token_ids") or ())
        told = (outcome, outcome != "correct", reward, length, str(sample.get("reason", "")))
        values = "?, ?, ?, ?, ?, ?, ?, ?, ?, ?"
        key = self._connection.execute(f"INSERT INTO responses VALUES (NULL, {values})", (*place, *told)).lastrowid
        self._connection.execute("INSERT INTO texts VALUES (?, ?)", (key, str(sample.get("text", ""))))

    def remove(self, source: str, number: int) -> None:
        """Removes the groups of a file."""
        here = "source = ? AND number = ?"
        keys = f"SELECT key FROM responses WHERE {here}"
        self._connection.execute(f"DELETE FROM texts WHERE key IN ({keys})", (source, number))
        for table in ("responses", "groups"):
            self._connection.execute(f"DELETE FROM {table} WHERE {here}", (source, number))

    def search(self, search: Search, offset: int, limit: int) -> tuple[int, list[Row]]:
        """The number of responses that a search finds, and some of them in its order."""
        where, values = _conditions(search)
        count = self._connection.execute(f"SELECT count(*) FROM responses WHERE {where}", values).fetchone()[0]
        page = f"SELECT key FROM responses WHERE {where} ORDER BY {ORDERS[search.order]} LIMIT ? OFFSET ?"
        keys = [key for (key,) in self._connection.execute(page, (*values, limit, offset))]
        return count, [self._row(key) for key in keys]

    def _row(self, key: int) -> Row:
        selected = self._connection.execute(
            "SELECT r.source, r.number, r.at, r.sample, r.outcome, r.reward, r.length, r.reason, g.name, "
            f"substr(g.asked, -{EXCERPT_CHARACTERS}), g.answer, substr(t.text, -{EXCERPT_CHARACTERS}) "
            "FROM responses r JOIN groups g ON g.key = r.inside JOIN texts t ON t.key = r.key WHERE r.key = ?",
            (key,),
        )
        return dict(zip(_COLUMNS, selected.fetchone(), strict=True))

    def place(self, source: str, number: int, at: int) -> Extent | None:
        """Where the file of a step or version has a group; None if it has no such group."""
        row = self._connection.execute(
            "SELECT start, size FROM groups WHERE source = ? AND number = ? AND at = ?", (source, number, at)
        ).fetchone()
        return Extent(*row) if row else None

    def summary(self) -> Row:
        """The values that a search can filter by, with the number of responses of each.

        Example: {"groups": 480, "responses": 3840, "sources": {"train": 3840}, "outcomes": {"correct": 2700, ...},
        "reasons": {"differs from 50": 12, ...}}. `reasons` holds the most frequent ones
        of responses that are not correct.
        """

        def counts(column: str, where: str = "1") -> dict[str, int]:
            rows = self._connection.execute(
                f"SELECT {column}, count(*) AS times FROM responses WHERE {where} GROUP BY {column} "
                f"ORDER BY times DESC LIMIT {MAX_VALUES}"
            )
            return dict(rows.fetchall())

        groups, responses = (
            self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("groups", "responses")
        )
        reasons = counts("reason", "wrong AND reason != ''")
        by = {"sources": counts("source"), "outcomes": counts("outcome"), "reasons": reasons}
        return {"groups": groups, "responses": responses, **by}


def _conditions(search: Search) -> tuple[str, list[Any]]:
    """The condition of a search in SQL, and its values."""
    equal = {"source": search.source, "outcome": search.outcome, "reason": search.reason}
    chosen: list[tuple[str, Any]] = [(f"{column} = ?", value) for column, value in equal.items() if value]
    bounds = {"number = ?": search.number, "reward >= ?": search.lowest, "reward <= ?": search.highest}
    chosen += [(condition, value) for condition, value in bounds.items() if value is not None]
    conditions, values = [condition for condition, _ in chosen], [value for _, value in chosen]
    if search.text:
        like = "LIKE ? ESCAPE '\\'"
        conditions.append(
            f"(key IN (SELECT key FROM texts WHERE text {like}) OR reason {like} "
            f"OR inside IN (SELECT key FROM groups WHERE asked {like} OR answer {like}))"
        )
        escaped = search.text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        values += [f"%{escaped}%"] * 4
    return " AND ".join(conditions) or "1", values
