"""The columns of a data set that hold questions, answers and images: named in the run file, or recognised by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from cepo.data.rows import column, has_column
from cepo.errors import UserError

if TYPE_CHECKING:
    from cepo.run.data import DataConfig


@dataclass(frozen=True)
class Columns:
    """The columns of questions, answers and images, as nested paths such as `reward_model.ground_truth`."""

    question: str
    """Empty for pairs whose responses begin with the question's turns."""
    answer: str
    convention: str = ""
    """The library that uses these names; empty if the run file gives them."""
    images: str = ""
    """Column of the images; empty if the data set has none."""
    kinds: tuple[str, str] = field(default=("text", "text"), compare=False)
    """What the first row holds as question and answer, such as ("chat messages", "number")."""

    def __str__(self) -> str:
        whose = f" ({self.convention} names)" if self.convention else ""
        images = f", images in {self.images}" if self.images else ""
        if not self.question:
            return f"column {self.answer} ({self.kinds[1]}), which begins with the question{whose}{images}"
        return f"columns {self.question} ({self.kinds[0]}) and {self.answer} ({self.kinds[1]}){whose}{images}"


CONVENTIONS = (
    Columns("question", "answer", "CEPO's"),
    Columns("problem", "answer", "EasyR1's"),
    Columns("prompt", "reward_model.ground_truth", "verl's"),
    Columns("prompt", "answer", "TRL's"),
    Columns("prompt", "solution", "TRL's"),
    Columns("problem", "solution", "TRL's"),
    Columns("messages", "answer", "OpenAI's"),
    Columns("conversations", "answer", "ShareGPT's"),
)
"""Tried in this order for columns that the run file does not name."""
IMAGE_COLUMNS = ("images", "image")
"""Tried in this order if the run file names no column of images."""


def recognised(
    rows: Sequence[tuple[int, Any]], data: DataConfig, source: str, *, shared_by: str | None = None
) -> Columns:
    """The columns that the run file names, and the conventional names for the others; each is in at least one row.

    Args:
        shared_by: the column of the rejected response of pairs, which may hold the question's turns, as the chosen one
            does.

    Raises:
        UserError: no row has such a column; names the existing columns and the key to set.
    """
    number, first = next(((n, row) for n, row in rows if isinstance(row, dict)), rows[0])
    columns = Columns(data.question, data.answer)
    if not (data.question and data.answer):
        fitting = (
            known
            for known in CONVENTIONS
            if (data.question or has_column(first, known.question)) and (data.answer or has_column(first, known.answer))
        )
        asking = (known for known in CONVENTIONS if known.answer == "answer" and has_column(first, known.question))
        known = next(chain(fitting, asking), CONVENTIONS[0])
        columns = Columns(data.question or known.question, data.answer or known.answer, known.convention)
        if shared_by and not has_column(first, columns.question) and _both_turns(first, (columns.answer, shared_by)):
            columns = Columns("", columns.answer, "TRL's")
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


def _both_turns(row: Any, paths: Sequence[str]) -> bool:
    return all(has_column(row, path) and isinstance(column(row, path), list) for path in paths)


def _kind(value: Any) -> str:
    match value:
        case str():
            return "text"
        case int() | float():
            return "number"
        case list():
            return "chat messages"
    return type(value).__name__
