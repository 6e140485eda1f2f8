"""Which columns of a data set hold its questions, answers and images: those the run file names, or known ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cepo.data.rows import column, has_column
from cepo.errors import UserError

if TYPE_CHECKING:
    from cepo.run.sections import DataConfig


@dataclass(frozen=True)
class Columns:
    """Where a data set holds its questions and answers."""

    question: str
    answer: str
    convention: str = ""
    """Whose names these are; empty: the run file's."""
    images: str = ""
    """Empty: the data set has none."""
    kinds: tuple[str, str] = field(default=("text", "text"), compare=False)
    """What the first row holds there."""

    def __str__(self) -> str:
        whose = f" ({self.convention} names)" if self.convention else ""
        images = f", images in {self.images}" if self.images else ""
        return f"columns {self.question} ({self.kinds[0]}) and {self.answer} ({self.kinds[1]}){whose}{images}"


CONVENTIONS = (
    Columns("question", "answer", "CEPO's"),
    Columns("problem", "answer", "EasyR1's"),
    Columns("prompt", "reward_model.ground_truth", "verl's"),
    Columns("prompt", "solution", "TRL's"),
    Columns("problem", "solution", "TRL's"),
)
"""Recognised in this order where the run file names no column."""
IMAGE_COLUMNS = ("images", "image")
"""The same for images."""


def recognised(rows: Sequence[tuple[int, Any]], data: DataConfig, source: str) -> Columns:
    """The columns the run file names, the others by convention; each is in some row.

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
    names = set().union(*(row for _, row in rows if isinstance(row, dict)))
    images = data.images or next((name for name in IMAGE_COLUMNS if name in names), "")
    wanted = {
        "data.question": columns.question,
        "data.answer": columns.answer,
        "data.images": images,
        "data.solution": data.solution,
    }
    for key, path in wanted.items():
        if path and isinstance(first, dict) and not any(has_column(row, path) for _, row in rows):
            try:
                column(first, path)
            except UserError as error:
                raise UserError(f"{source}, row {number}: {error}; name the right one in {key}") from error
    kinds = [_kind(column(first, p)) if has_column(first, p) else "missing" for p in (columns.question, columns.answer)]
    return replace(columns, kinds=(kinds[0], kinds[1]), images=images)


def _kind(value: Any) -> str:
    match value:
        case str():
            return "text"
        case int() | float():
            return "number"
        case list():
            return "chat messages"
    return type(value).__name__
