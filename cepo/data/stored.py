"""The problems of a run, in its folder: problems/train.jsonl, problems/eval.jsonl and problems/SHA256SUMS.

The launcher reads and checks the data set once and writes its problems here; the trainer reads these files alone. The
digests show which rows a run was trained on: `cd RUN/problems && sha256sum -c SHA256SUMS`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cepo.data.problems import Problem, Problems
from cepo.errors import UserError
from cepo.messages.groups import ImageRef, Message
from cepo.net.files import make_folder, replace_file
from cepo.run.folder import Excluded, RunDir

if TYPE_CHECKING:
    from pathlib import Path

    from cepo.run.config import RunConfig

SUMS = "SHA256SUMS"
SHOWN_DIGITS = 12
"""Of a digest in a message."""


def begin(
    folder: RunDir, config: RunConfig, sets: Mapping[str, Problems], *, resume: bool, excluded: Excluded | None = None
) -> None:
    """Makes the folder of a run with its problems; a resumed run keeps the problems it has.

    Args:
        sets: the checked problems by file name, `train` and, if the run has held-out problems, `eval`.
        excluded: the rows that the verifier cannot grade, for excluded.json; `sets` holds none of them.

    Raises:
        UserError: the folder holds a run already, holds none to resume, or its run has other problems than `sets`.
    """
    folder.check(resume=resume)
    known = digests(folder) if resume else {}
    contents = {name: _lines(problems) for name, problems in sets.items()}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    for name, now in sums.items():
        if known.get(name, now) != now:
            raise UserError(
                f"{sets[name].source} gives other problems than this run has (sha256 {now[:SHOWN_DIGITS]} now, "
                f"{known[name][:SHOWN_DIGITS]} in {_file(folder, name)}); restore the file and its [data] keys, or "
                "start a new run"
            )
    make_folder(folder.problems)
    for name, content in contents.items():
        replace_file(_file(folder, name), content)
    listed = "".join(f"{digest}  {name}.jsonl\n" for name, digest in sorted({**known, **sums}.items()))
    replace_file(folder.problems / SUMS, listed.encode())
    folder.create(config, resume=resume, excluded=excluded)


def stored(folder: RunDir, name: str) -> Problems:
    """The problems of a run, `train` or `eval`.

    Raises:
        UserError: the folder has no such file, or the file does not have its digest.
    """
    path, known = _file(folder, name), digests(folder).get(name)
    if known is None or not path.is_file():
        raise UserError(
            f"{path} is missing: the run folder is incomplete or of an older version; resume it with "
            f"`cepo train RUN.toml --run-dir {folder.path} --resume`, which writes the file"
        )
    content = path.read_bytes()
    if (now := hashlib.sha256(content).hexdigest()) != known:
        raise UserError(
            f"{path} was changed after the run began (sha256 {now[:SHOWN_DIGITS]} now, {known[:SHOWN_DIGITS]} in "
            f"{SUMS}); restore it, or start a new run"
        )
    return Problems(tuple(map(_problem, content.splitlines())), (), str(path))


def digests(folder: RunDir) -> dict[str, str]:
    """The sha256 of each problem file, such as `{"train": "9f86...", "eval": "60303..."}`; empty without problems."""
    sums = folder.problems / SUMS
    rows = [line.split() for line in sums.read_text().splitlines()] if sums.is_file() else []
    return {name.removesuffix(".jsonl"): digest for digest, name in rows}


def _file(folder: RunDir, name: str) -> Path:
    return folder.problems / f"{name}.jsonl"


def _lines(problems: Problems) -> bytes:
    return "".join(json.dumps(_row(problem)) + "\n" for problem in problems.problems).encode()


def _row(problem: Problem) -> dict[str, Any]:
    """A problem as JSON, empty values left out. Its token count is left out too: it depends on more than the data."""
    row = {
        "row": problem.row,
        "messages": [message.model_dump(exclude_defaults=True) for message in problem.messages],
        "answer": problem.answer,
        "solution": problem.solution,
        "rejected": problem.rejected,
        "images": [image.model_dump() for image in problem.images],
        "source": problem.source,
        "columns": problem.columns,
    }
    return {key: value for key, value in row.items() if value not in ("", [])}


def _problem(line: bytes) -> Problem:
    row = json.loads(line)
    return Problem(
        messages=tuple(Message(**message) for message in row["messages"]),
        answer=row["answer"],
        row=row["row"],
        images=tuple(ImageRef(**image) for image in row.get("images", ())),
        solution=row.get("solution", ""),
        rejected=row.get("rejected", ""),
        source=row.get("source", ""),
        columns=row.get("columns", ""),
    )
