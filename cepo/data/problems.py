"""Problems from rows: columns, the checks of every row, and the training order.

Every row is checked before anything is sampled: its columns, its answer, its length under the longest context.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cepo.answers.kinds import check_reference
from cepo.answers.perturb import perturbed
from cepo.data.columns import CONVENTIONS, Columns, recognised
from cepo.data.pairs import CHOSEN, question_of, responses
from cepo.data.rows import Row, column, folder_of, has_column, passes, read_rows
from cepo.data.turns import messages_of, require_unicode, with_tools
from cepo.errors import UserError
from cepo.messages.groups import ImageRef, Message, Placement
from cepo.messages.hints import MARK, hint_line, with_instruction, with_marks
from cepo.prompts.images import ImageSink, cells, checked, read
from cepo.prompts.renderer import Renderer

if TYPE_CHECKING:
    from cepo.run.config import RunConfig
    from cepo.run.folder import Excluded
    from cepo.run.sections import DataConfig


@dataclass(frozen=True)
class Problem:
    """One prompt and its reference answer, reduced to the answer itself."""

    messages: tuple[Message, ...]
    answer: str
    row: int = field(default=-1, compare=False)
    """Position of its row in the data set, from 0."""
    tokens: int = field(default=0, compare=False)
    """Length of the prompt with the right answer, or the solution, as hint; image tokens count too."""
    images: tuple[ImageRef, ...] = ()
    solution: str = field(default="", compare=False)
    """A worked solution; empty unless the run names its column."""
    rejected: str = ""
    """The rejected response of a pair; `answer` is then the whole chosen response."""


@dataclass(frozen=True)
class Problems:
    """The usable problems of a data set, and the reasons why other rows were dropped."""

    problems: tuple[Problem, ...]
    dropped: tuple[str, ...]
    source: str = ""
    """Where the problems come from, such as "data.train=/data/train.jsonl"."""
    columns: Columns = CONVENTIONS[0]

    def at(self, position: int, seed: int) -> Problem:
        """The problem at a position of the endless training order, in which every epoch is shuffled anew.

        A function of the seed and the position alone: with 4 problems, positions 0 to 3 are the first epoch.
        """
        epoch, offset = divmod(position, len(self.problems))
        return self.problems[_order(len(self.problems), seed, epoch)[offset]]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    return order


def load_problems(
    config: RunConfig,
    renderer: Renderer,
    *,
    held_out: bool = False,
    excluded: Mapping[int, str] | None = None,
    store: ImageSink | None = None,
) -> Problems:
    """Reads, maps and checks a run's training or held-out problems.

    Args:
        excluded: rows that were found unusable before, with the reasons; they count as dropped.
        store: takes the images; None: they are only checked.

    Raises:
        UserError: the file or a column is missing, there are no rows, or a row cannot be used and `data.on_bad_row`
            is "refuse".
    """
    if held_out:  # evaluation has no teacher, so no solution is shown
        config = config.model_copy(update={"data": config.data.model_copy(update={"solution": ""})})
    data = config.data
    name, split = (data.eval, data.eval_split) if held_out else (data.train, data.split)
    key = "data.eval" if held_out else "data.train"
    source = f"{key}={name}"
    rows = _chosen(read_rows(name, split, key), config, source, held_out=held_out)
    pairs = config.algorithm.offline and not held_out
    if pairs:
        named = data.model_copy(update={"answer": data.answer or CHOSEN})
        columns = recognised(rows, named, source, shared_by=data.rejected)
    else:
        columns = recognised(rows, data, source)
    reader = _Reader(config, renderer, columns, folder_of(name), store)
    problems, dropped = [], []
    for number, row in rows:
        try:
            if excluded and number in excluded:
                raise UserError(excluded[number])
            problems.append(reader.pair(number, row) if pairs else reader.problem(number, row))
        except UserError as error:
            dropped.append(drop(f"{source}, row {number}: {error}", data))
    if not problems:
        raise UserError(f"{source} is empty: every row was dropped, the first because: {dropped[0]}")
    return Problems(tuple(problems), tuple(dropped), source, columns)


def load_sets(
    config: RunConfig, renderer: Renderer, *, excluded: Excluded | None = None, store: ImageSink | None = None
) -> dict[str, Problems]:
    """Reads and checks the training problems as `train` and, if `data.eval` names any, the held-out ones as `eval`.

    Args:
        excluded: the rows of each set that were found unusable before, and why.
        store: takes the images; None: they are only checked.

    Raises:
        UserError: as for `load_problems`.
    """
    bad = excluded or {}
    sets = {"train": load_problems(config, renderer, excluded=bad.get("train"), store=store)}
    if config.data.eval:
        sets["eval"] = load_problems(config, renderer, held_out=True, excluded=bad.get("eval"), store=store)
    return sets


def drop(reason: str, data: DataConfig) -> str:
    """The reason why a row is dropped.

    Raises:
        UserError: the run refuses bad rows.
    """
    if data.on_bad_row == "refuse":
        raise UserError(f'{reason}; fix the row or set data.on_bad_row = "drop"')
    return reason


def _chosen(rows: list[Any], config: RunConfig, source: str, *, held_out: bool) -> list[tuple[int, Any]]:
    """The numbered rows that meet the conditions; training rows are sampled down to `data.limit`."""
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


@dataclass(frozen=True)
class _Reader:
    """Makes the problems of a data set's rows."""

    config: RunConfig
    renderer: Renderer
    columns: Columns
    folder: Path | None
    """Folder that image paths are relative to; None if the data set may not name files."""
    store: ImageSink | None

    def problem(self, number: int, row: Row) -> Problem:
        """Checks a row and makes its problem.

        Raises:
            UserError: the row cannot be used; names the column or key.
        """
        if not isinstance(row, dict):
            raise UserError(f"it is {row!r}, not an object with columns")
        config, path = self.config, self.columns.answer
        answer = column(row, path)
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            inner = f", name one of its columns in data.answer: {', '.join(answer)}" if isinstance(answer, dict) else ""
            raise UserError(f"column {path!r} holds {answer!r}, which is not an answer{inner}")
        if isinstance(answer, float) and not math.isfinite(answer):
            raise UserError(f"column {path!r} holds {answer!r}, which is not an answer")
        reference = require_unicode(check_reference(str(answer), config.data.answer_kind), f"column {path!r}")
        messages = _messages(row, column(row, self.columns.question), self.columns, config.data)
        images, messages = self._images(row, messages)
        solution = self._solution(row)
        shown = (config.algorithm.shows_solution and solution) or reference
        placement = Placement[config.data.placement.upper()]
        tokens = len(self.renderer.hinted_ids(messages, config.data.hint, shown, placement, images))
        length = tokens + config.sampling.max_tokens + 1
        if length > config.model.max_length:
            raise UserError(
                f"prompt, hint, sampling.max_tokens={config.sampling.max_tokens} and the end token make {length} "
                f"tokens, above model.max_length={config.model.max_length}"
            )
        self._require_contrast(path, reference)
        return Problem(messages, reference, number, tokens, images, solution)

    def _require_contrast(self, path: str, reference: str) -> None:
        """Checks that hints with the reference and with another answer have different token ids.

        The renderer has made sure that the template keeps the hint; here the tokenizer keeps the answer.
        """
        other = perturbed(reference)
        right, wrong = (
            self.renderer.control.as_text(hint_line(self.config.data.hint, answer)) for answer in (reference, other)
        )
        if right == wrong:
            raise UserError(
                f"column {path!r} holds {reference!r}, which has the same tokens as {other!r}, so r+ and r- are the "
                "same; use a model whose tokenizer knows these characters"
            )

    def pair(self, number: int, row: Row) -> Problem:
        """Checks a row of a pair and makes its problem: the question with the chosen and the rejected response.

        Raises:
            UserError: the row cannot be used; names the column or key.
        """
        if not isinstance(row, dict):
            raise UserError(f"it is {row!r}, not an object with columns")
        messages = _messages(row, question_of(row, self.columns, self.config), self.columns, self.config.data)
        images, messages = self._images(row, messages)
        tokens = len(self.renderer.prompt_ids(messages, images))
        chosen, rejected = responses(row, self.columns, tokens, self.config, self.renderer)
        return Problem(messages, chosen, number, tokens, images, rejected=rejected)

    def _images(self, row: Row, messages: tuple[Message, ...]) -> tuple[tuple[ImageRef, ...], tuple[Message, ...]]:
        """The images of a row, and its messages with a mark for each image."""
        path = self.columns.images
        if not path:
            if self.renderer.is_vision_language and any(
                MARK in message.content for message in messages if message.role != "system"
            ):
                raise UserError(f"its question has {MARK} marks and no column holds images; name it in data.images")
            return (), messages
        try:
            cell_images = cells(column(row, path)) if has_column(row, path) else []
            if not cell_images:
                return (), with_marks(messages, 0)
            pixels = self.renderer.pixels
            pictures = [read(cell, self.folder) for cell in cell_images]
            images = tuple(map(checked, pictures))
            for image in images:
                pixels.tokens(image)
            messages = with_marks(messages, len(images))
        except UserError as error:
            raise UserError(f"column {path!r} {error}") from error
        if self.store is not None:
            for picture in pictures:
                self.store.put(picture)
        return images, messages

    def _solution(self, row: Row) -> str:
        path = self.config.data.solution
        if not path:
            return ""
        solution = column(row, path)
        if not isinstance(solution, str) or (self.config.algorithm.shows_solution and not solution.strip()):
            raise UserError(f"column {path!r} holds {solution!r}, which is not a solution")
        return require_unicode(solution, f"column {path!r}")


def _messages(row: Row, question: Any, columns: Columns, data: DataConfig) -> tuple[Message, ...]:
    """The conversation of a row, with the run's instruction after the last question and its system message."""
    turns = list(messages_of(question, columns.question or columns.answer, images=bool(columns.images)))
    at = max(at for at, turn in enumerate(turns) if turn.role == "user")
    turns[at] = turns[at].model_copy(update={"content": with_instruction(turns[at].content, data.instruction)})
    if data.system:
        turns.insert(0, Message(role="system", content=data.system))
    return with_tools(tuple(turns), row)
