"""Problems from rows: which columns hold them, the checks on every row, and the order.

Every row is checked before anything is sampled: its columns, its answer, its length under the longest context.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from cepo.answers import reference_of
from cepo.contracts import Message, Placement
from cepo.errors import UserError
from cepo.kinds import check_reference
from cepo.rendering import Renderer
from cepo.rows import Row, column, has_column, passes, read_rows
from cepo.runconfig import Data, RunConfig


@dataclass(frozen=True)
class Columns:
    """Where a data set holds its questions and answers."""

    question: str
    answer: str
    convention: str = ""
    """Whose names these are; empty: the run file's."""
    kinds: tuple[str, str] = field(default=("text", "text"), compare=False)
    """What the first row holds there."""

    def __str__(self) -> str:
        whose = f" ({self.convention} names)" if self.convention else ""
        return f"columns {self.question} ({self.kinds[0]}) and {self.answer} ({self.kinds[1]}){whose}"


CONVENTIONS = (
    Columns("question", "answer", "CEPO's"),
    Columns("problem", "answer", "EasyR1's"),
    Columns("prompt", "reward_model.ground_truth", "verl's"),
    Columns("prompt", "solution", "TRL's"),
    Columns("problem", "solution", "TRL's"),
)
"""Recognised in this order where the run file names no column."""


@dataclass(frozen=True)
class Problem:
    """One prompt and its reference answer, reduced to the answer itself."""

    messages: tuple[Message, ...]
    answer: str
    row: int = field(default=-1, compare=False)
    """Its place in the file."""
    tokens: int = field(default=0, compare=False)
    """Prompt with the right answer, or the solution, as hint."""
    solution: str = field(default="", compare=False)
    """A worked solution, where the run names its column."""


@dataclass(frozen=True)
class Problems:
    """A usable data set, and what was dropped from it."""

    problems: tuple[Problem, ...]
    dropped: tuple[str, ...]
    source: str = ""
    """Config key and name."""
    columns: Columns = CONVENTIONS[0]

    def at(self, position: int, seed: int) -> Problem:
        """The problem at a position of an endless shuffled sequence: a pure function of seed and position."""
        epoch, offset = divmod(position, len(self.problems))
        return self.problems[_order(len(self.problems), seed, epoch)[offset]]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    return order


def load_problems(
    config: RunConfig, renderer: Renderer, *, held_out: bool = False, excluded: Mapping[int, str] | None = None
) -> Problems:
    """Reads, maps and checks a run's training or held-out problems.

    Args:
        excluded: rows found unusable before, and why; they count as dropped.

    Raises:
        UserError: no such file or column, no rows, or a row that cannot be used while `data.on_bad_row` is "refuse".
    """
    if held_out:  # nobody teaches there
        config = config.model_copy(update={"data": config.data.model_copy(update={"solution": ""})})
    data = config.data
    name, split = (data.eval, data.eval_split) if held_out else (data.train, data.split)
    key = "data.eval" if held_out else "data.train"
    source = f"{key}={name}"
    rows = _chosen(read_rows(name, split, key), config, source, held_out=held_out)
    columns = _recognised(rows, data, source)
    problems, dropped = [], []
    for number, row in rows:
        try:
            if excluded and number in excluded:
                raise UserError(excluded[number])
            problems.append(_problem(number, row, columns, config, renderer))
        except UserError as error:
            dropped.append(drop(f"{source}, row {number}: {error}", data))
    if not problems:
        raise UserError(f"{source} is empty: every row was dropped, the first because: {dropped[0]}")
    return Problems(tuple(problems), tuple(dropped), source, columns)


def drop(reason: str, data: Data) -> str:
    """The reason why a row is dropped.

    Raises:
        UserError: the run refuses bad rows.
    """
    if data.on_bad_row == "refuse":
        raise UserError(f'{reason}; mend the row or set data.on_bad_row = "drop"')
    return reason


def _chosen(rows: list[Any], config: RunConfig, source: str, *, held_out: bool) -> list[tuple[int, Any]]:
    """Numbered rows that pass the filters; of the training rows as many as the limit allows."""
    data = config.data
    key, conditions = ("data.eval_where", data.eval_where) if held_out else ("data.where", data.where)
    numbered = list(enumerate(rows))
    if not numbered:
        raise UserError(f"{source} is empty: it has no rows")
    for condition in conditions:
        try:
            numbered = [(number, row) for number, row in numbered if passes(row, condition)]
        except UserError as error:
            raise UserError(f"{source}, {key} {condition!r}: {error}; name one of them") from error
    if not numbered:
        raise UserError(f"{source}: none of {len(rows)} rows passes {key}={list(conditions)}; loosen it")
    limit = 0 if held_out else data.limit
    if 0 < limit < len(numbered):
        chosen = random.Random(f"limit-{config.loop.seed}").sample(range(len(numbered)), limit)
        numbered = [numbered[i] for i in sorted(chosen)]
    return numbered


def _recognised(rows: Sequence[tuple[int, Any]], data: Data, source: str) -> Columns:
    """The columns the run file names, the others by convention; both are in some row.

    Raises:
        UserError: no row has such a column; names those there are and the key to set.
    """
    number, first = next(((n, row) for n, row in rows if isinstance(row, dict)), rows[0])
    columns = Columns(data.question, data.answer)
    if not (data.question and data.answer):
        fitting = (
            known
            for known in CONVENTIONS
            if (data.question or has_column(first, known.question)) and (data.answer or has_column(first, known.answer))
        )
        known = next(fitting, CONVENTIONS[0])
        columns = Columns(data.question or known.question, data.answer or known.answer, known.convention)
    named = (("data.question", columns.question), ("data.answer", columns.answer), ("data.solution", data.solution))
    for key, path in named if data.solution else named[:2]:
        if isinstance(first, dict) and not any(has_column(row, path) for _, row in rows):
            try:
                column(first, path)
            except UserError as error:
                raise UserError(f"{source}, row {number}: {error}; name the right one in {key}") from error
    kinds = [_kind(column(first, p)) if has_column(first, p) else "missing" for p in (columns.question, columns.answer)]
    return replace(columns, kinds=(kinds[0], kinds[1]))


def _kind(value: Any) -> str:
    match value:
        case str():
            return "text"
        case int() | float():
            return "number"
        case list():
            return "chat messages"
    return type(value).__name__


def _problem(number: int, row: Row, columns: Columns, config: RunConfig, renderer: Renderer) -> Problem:
    if not isinstance(row, dict):
        raise UserError(f"it is {row!r}, not an object with columns")
    answer = column(row, columns.answer)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise UserError(f"column {columns.answer!r} holds {answer!r}, which is not an answer")
    check_reference(str(answer), config.data.answer_kind)
    messages = _messages(column(row, columns.question), columns.question, config.data)
    reference = reference_of(str(answer))
    solution = _solution(row, config)
    shown, placement = (config.shows_solution and solution) or reference, Placement[config.data.placement.upper()]
    tokens = len(renderer.hinted_ids(messages, config.data.hint, shown, placement))
    length = tokens + config.sampling.max_tokens + 1
    if length > config.model.max_length:
        raise UserError(
            f"prompt, hint and sampling.max_tokens={config.sampling.max_tokens} make {length} tokens with the one "
            f"that ends them, above model.max_length={config.model.max_length}"
        )
    return Problem(messages, reference, number, tokens, solution)


def _solution(row: Row, config: RunConfig) -> str:
    path = config.data.solution
    if not path:
        return ""
    solution = column(row, path)
    if not isinstance(solution, str) or (config.shows_solution and not solution.strip()):
        raise UserError(f"column {path!r} holds {solution!r}, which is not a solution")
    return solution


def _messages(question: Any, path: str, data: Data) -> tuple[Message, ...]:
    if isinstance(question, str):
        turns = [Message(role="user", content=question)]
    elif (
        isinstance(question, list)
        and question
        and all(isinstance(t, dict) and {"role", "content"} <= set(t) for t in question)
    ):
        turns = [Message(role=str(turn["role"]), content=str(turn["content"])) for turn in question]
    else:
        raise UserError(f"column {path!r} holds neither a text nor chat messages")
    if not turns[-1].content.strip() or turns[-1].role != "user":
        raise UserError(f"column {path!r} does not end with a user's question")
    if data.instruction:
        turns[-1] = Message(role="user", content=f"{turns[-1].content}\n{data.instruction}")
    if data.system:
        turns.insert(0, Message(role="system", content=data.system))
    return tuple(turns)
