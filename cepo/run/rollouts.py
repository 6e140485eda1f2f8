"""The groups of a run on disk, one JSON object per line.

    rollouts/step-000019.jsonl         the training groups of step 19
    rollouts/held-out-000020.jsonl     the held-out groups that policy version 20 answered
    rollouts/index.sqlite              what a search needs of every response (`cepo.run.rollout_index`)

A file of more than PLAIN_BYTES is compressed: step-000019.jsonl.gz. Each of its lines is a gzip member of its own, so a
group is read without those before it, and `zcat` or `pandas.read_json(path, lines=True)` reads the whole file.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cepo.net.files import replace_file
from cepo.run.lines import Row, parsed
from cepo.run.rollout_index import INDEX_ERRORS, Extent, RolloutIndex

PLAIN_BYTES = 2**20
"""The largest file that is written without compression."""
LEVEL = 3
"""Of gzip: above it, a file takes twice the time and is a tenth smaller."""
PREFIXES = {"train": "step", "held-out": "held-out"}
"""The beginning of a file's name, by the source of its groups."""
CHUNK_BYTES = 2**16
_NAME = re.compile(r"(step|held-out)-(\d+)\.jsonl(\.gz)?")
_SOURCES = {prefix: source for source, prefix in PREFIXES.items()}
log = logging.getLogger(__name__)


class RolloutFile(NamedTuple):
    """A file of groups, such as ("train", 19, .../step-000019.jsonl)."""

    source: str
    number: int
    """The step of training groups, or the policy version of held-out groups."""
    path: Path


class Rollouts:
    """Reads and writes the groups of a run."""

    def __init__(self, folder: Path) -> None:
        """Opens rollouts/ of a run folder; nothing is read yet."""
        self.folder = folder
        self.index_path = folder / "index.sqlite"

    def files(self) -> list[RolloutFile]:
        """The files in order of source and number."""
        matches = [(path, _NAME.fullmatch(path.name)) for path in self.folder.glob("*.jsonl*")]
        return sorted(RolloutFile(_SOURCES[name[1]], int(name[2]), path) for path, name in matches if name)

    def path(self, source: str, number: int) -> Path | None:
        """The file of a step or version; None if the run wrote none."""
        plain = self.folder / f"{PREFIXES[source]}-{number:06d}.jsonl"
        return next((path for path in (plain, plain.with_name(f"{plain.name}.gz")) if path.is_file()), None)

    def groups(self, source: str, number: int, offset: int = 0, limit: int | None = None) -> list[Row]:
        """Groups of a step or version, from the offset-th on; empty if the run wrote none."""
        path = self.path(source, number)
        if path is None:
            return []
        lines = content(path).split(b"\n")
        return parsed(b"\n".join(lines[offset : None if limit is None else offset + limit]))

    def count(self, source: str, number: int) -> int:
        """The number of groups of a step or version."""
        path = self.path(source, number)
        return sum(1 for line in content(path).split(b"\n") if line.endswith(b"}")) if path else 0

    def at(self, source: str, number: int, place: Extent) -> Row | None:
        """The group at a place that the index names; None if the file has changed since."""
        path = self.path(source, number)
        if path is None:
            return None
        with path.open("rb") as file:
            file.seek(place.offset)
            line = file.read(place.size)
        try:
            rows = parsed(zlib.decompress(line, wbits=31) if path.suffix == ".gz" else line)
        except zlib.error:
            return None
        return rows[0] if rows else None

    def write(self, source: str, number: int, groups: Sequence[Row]) -> None:
        """Writes the groups of a step or version and adds them to the index.

        Raises:
            StorageError: the file cannot be written.
        """
        lines = [json.dumps(group).encode() + b"\n" for group in groups]
        plain = self.folder / f"{PREFIXES[source]}-{number:06d}.jsonl"
        packed = plain.with_name(f"{plain.name}.gz")
        path, other = plain, packed
        if sum(map(len, lines)) > PLAIN_BYTES:
            path, other = packed, plain
            lines = [gzip.compress(line, LEVEL, mtime=0) for line in lines]
        replace_file(path, b"".join(lines))
        other.unlink(missing_ok=True)
        self._indexed(lambda index: index.add(source, number, groups, places(lines)))

    def bound(self, limit_bytes: float) -> None:
        """Removes the oldest files while all of them exceed the limit: training groups first, never the newest file."""
        files = [file for name in PREFIXES for file in self.files() if file.source == name]
        newest = {file.source: file.number for file in files}
        sizes = {file.path: file.path.stat().st_size for file in files}
        total = sum(sizes.values()) + (self.index_path.stat().st_size if self.index_path.is_file() else 0)
        for file in files:
            if total <= limit_bytes:
                return
            if file.number != newest[file.source]:
                total -= sizes[file.path]
                self._remove(file)

    def truncate(self, step: int) -> None:
        """Removes the groups of the steps from `step` on and of the policies after it, because they are repeated.

        Files that the index lacks, such as those of an older release, are added to it.
        """
        for file in self.files():
            if file.number >= step + (file.source == "held-out"):
                self._remove(file)
        self._indexed(lambda index: complete(self, index))

    def _remove(self, file: RolloutFile) -> None:
        file.path.unlink(missing_ok=True)
        self._indexed(lambda index: index.remove(file.source, file.number))

    def _indexed(self, change: Callable[[RolloutIndex], None]) -> None:
        """Changes the index. Its file is dropped if that fails: it can be made again from the groups."""
        try:
            with RolloutIndex.writing(self.index_path) as index:
                change(index)
        except INDEX_ERRORS as error:
            log.warning("%s cannot be written (%s); the dashboard makes its own", self.index_path, error)
            self.index_path.unlink(missing_ok=True)


def content(path: Path) -> bytes:
    """The lines of a file of groups, whether it is compressed or not."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def places(lines: Sequence[bytes]) -> list[Extent]:
    """Offset and size of each stored line. Example: lines of 3 and 4 bytes are at (0, 3) and (3, 4)."""
    ends = [0]
    for line in lines:
        ends.append(ends[-1] + len(line))
    return [Extent(start, len(line)) for start, line in zip(ends, lines, strict=False)]


def stored_lines(path: Path) -> list[bytes]:
    """The lines of a file as they are stored: a gzip member each, if the file is compressed."""
    data = path.read_bytes()
    if path.suffix != ".gz":
        return [line + b"\n" for line in data.split(b"\n")[:-1]]
    lines, begin = [], 0
    while begin < len(data):
        member, end = zlib.decompressobj(wbits=31), begin
        while not member.eof and end < len(data):
            member.decompress(data[end : end + CHUNK_BYTES])
            end += CHUNK_BYTES
        end = min(end, len(data)) - len(member.unused_data)
        lines.append(data[begin:end])
        begin = end
    return lines


def complete(rollouts: Rollouts, index: RolloutIndex) -> None:
    """Adds the files that an index lacks."""
    known = index.files()
    for file in rollouts.files():
        if (file.source, file.number) not in known:
            add_file(index, file)


def add_file(index: RolloutIndex, file: RolloutFile) -> None:
    """Adds the groups of a file to an index, in place of those that it had."""
    lines = stored_lines(file.path)
    packed = file.path.suffix == ".gz"
    groups = [parsed(zlib.decompress(line, wbits=31) if packed else line) for line in lines]
    whole = [(place, rows[0]) for place, rows in zip(places(lines), groups, strict=True) if rows]
    index.add(file.source, file.number, [row for _, row in whole], [place for place, _ in whole])
