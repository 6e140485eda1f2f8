"""Makes the problem of a row, after every check of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cepo.answers.kinds import check_reference
from cepo.answers.perturb import perturbed
from cepo.data.columns import Columns
from cepo.data.drawing import Problem
from cepo.data.pairs import question_of, responses
from cepo.data.rows import Row, column, has_column
from cepo.data.turns import messages_of, require_unicode, with_tools
from cepo.errors import UserError
from cepo.messages.groups import ImageRef, Message, Placement
from cepo.messages.hints import MARK, hint_line, with_instruction, with_marks
from cepo.prompts.images import ImageSink, cells, checked, read
from cepo.prompts.renderer import Renderer

if TYPE_CHECKING:
    from cepo.run.config import RunConfig
    from cepo.run.data import DataConfig


@dataclass(frozen=True)
class RowReader:
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
        columns = _plain(row) if config.data.environment else ""
        return Problem(messages, reference, number, tokens, images, solution, columns=columns)

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


def _plain(row: Row) -> str:
    """A row as a JSON object, without the columns that are not JSON, such as the bytes of an image.

    Raises:
        UserError: a column holds text that is not Unicode.
    """
    plain = {}
    for key, value in row.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            continue
        plain[key] = value
    return require_unicode(json.dumps(plain, ensure_ascii=False), "the row")
