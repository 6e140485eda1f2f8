"""Problems from files: JSONL, JSON, Parquet, or a Hugging Face data set, with a column mapping.

Every row is checked before anything is sampled: its columns, its answer, its length under the longest context.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cepo.answers import reference_of
from cepo.contracts import Message
from cepo.errors import UserError
from cepo.kinds import check_reference
from cepo.rendering import Renderer, with_hint
from cepo.runconfig import Data, RunConfig, is_path

Row = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """One prompt and its reference answer, reduced to the answer itself."""

    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True)
class Problems:
    """A usable data set, and what was dropped from it."""

    problems: tuple[Problem, ...]
    dropped: tuple[str, ...]

    def at(self, position: int, seed: int) -> Problem:
        """The problem at a position of an endless shuffled sequence: a pure function of seed and position."""
        epoch, offset = divmod(position, len(self.problems))
        return self.problems[_order(len(self.problems), seed, epoch)[offset]]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    return order


def load_problems(config: RunConfig, renderer: Renderer, *, held_out: bool = False) -> Problems:
    """Reads, maps and checks a run's training or held-out problems.

    Raises:
        UserError: no such file or column, no rows, or a row that cannot be used while `data.on_bad_row` is "refuse".
    """
    data = config.data
    name, split = (data.eval, data.eval_split) if held_out else (data.train, data.split)
    key = "data.eval" if held_out else "data.train"
    problems, dropped = [], []
    for number, row in enumerate(_rows(name, split, key)):
        try:
            problems.append(_problem(row, data, config, renderer))
        except UserError as error:
            message = f"{key}={name}, row {number}: {error}"
            if data.on_bad_row == "refuse":
                raise UserError(f'{message}; mend the row or set data.on_bad_row = "drop"') from error
            dropped.append(message)
    if not problems:
        reason = f"every row was dropped, the first because: {dropped[0]}" if dropped else "it has no rows"
        raise UserError(f"{key}={name} is empty: {reason}")
    return Problems(tuple(problems), tuple(dropped))


def column(row: Row, path: str) -> Any:
    """A value by nested path, such as `reward_model.ground_truth` or `prompt.0.content`.

    Raises:
        UserError: there is no such column; names those there are.
    """
    value: Any = row
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, Sequence) and not isinstance(value, str) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise UserError(f"no column {path!r}; the columns are {', '.join(_paths(row))}")
    return value


def _problem(row: Row, data: Data, config: RunConfig, renderer: Renderer) -> Problem:
    if not isinstance(row, dict):
        raise UserError(f"it is {row!r}, not an object with columns")
    answer = column(row, data.answer)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise UserError(f"column {data.answer!r} holds {answer!r}, which is not an answer")
    check_reference(str(answer), data.answer_kind)
    problem = Problem(_messages(column(row, data.question), data), reference_of(str(answer)))
    hinted = with_hint(problem.messages, data.hint, problem.answer)
    length = len(renderer.prompt_ids(hinted)) + config.sampling.max_tokens
    if length > config.model.max_length:
        raise UserError(
            f"prompt, hint and sampling.max_tokens={config.sampling.max_tokens} make {length} tokens, "
            f"above model.max_length={config.model.max_length}"
        )
    return problem


def _messages(question: Any, data: Data) -> tuple[Message, ...]:
    if isinstance(question, str):
        turns = [Message(role="user", content=question)]
    elif (
        isinstance(question, list)
        and question
        and all(isinstance(t, dict) and {"role", "content"} <= set(t) for t in question)
    ):
        turns = [Message(role=str(turn["role"]), content=str(turn["content"])) for turn in question]
    else:
        raise UserError(f"column {data.question!r} holds neither a text nor chat messages")
    if not turns[-1].content.strip() or turns[-1].role != "user":
        raise UserError(f"column {data.question!r} does not end with a user's question")
    if data.instruction:
        turns[-1] = Message(role="user", content=f"{turns[-1].content}\n{data.instruction}")
    if data.system:
        turns.insert(0, Message(role="system", content=data.system))
    return tuple(turns)


def _rows(name: str, split: str, key: str) -> Iterable[Row]:
    path = Path(name)
    if not is_path(name) or path.is_dir():
        return _hub_rows(name, split, key)
    if not path.is_file():
        raise UserError(f"{key}={name}: no such file")
    try:
        match path.suffix:
            case ".jsonl":
                return list(_json_lines(path))
            case ".json":
                return _json_list(path)
            case ".parquet":
                import pyarrow.parquet

                return list(pyarrow.parquet.read_table(path).to_pylist())
    except (ValueError, OSError) as error:
        raise UserError(f"{key}={name} cannot be read: {error}") from error
    raise UserError(f"{key}={name}: unknown kind of file; use .jsonl, .json or .parquet")


def _json_lines(path: Path) -> Iterable[Row]:
    for number, line in enumerate(path.read_text().split("\n"), 1):  # splitlines would cut texts at other separators
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error


def _json_list(path: Path) -> list[Row]:
    rows = json.loads(path.read_text())
    if not isinstance(rows, list):
        raise ValueError("it is not a list of rows")
    return rows


def _hub_rows(name: str, split: str, key: str) -> Iterable[Row]:
    import datasets

    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError) as error:
        raise UserError(f"{key}={name}, split {split!r}, cannot be loaded: {str(error).splitlines()[0]}") from error


def _paths(value: Any, prefix: str = "") -> list[str]:
    """Every nested path of a row that holds a plain value."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and value:
        items = [("0", value[0])]
    else:
        return [prefix]
    return [path for name, child in items for path in _paths(child, f"{prefix}.{name}" if prefix else str(name))]
