"""Pairs of a chosen and a rejected response in a data set, for methods that learn from pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cepo.data.columns import Columns
from cepo.data.rows import Row, column
from cepo.errors import UserError
from cepo.prompts.renderer import Renderer

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

CHOSEN = "chosen"
"""Column of the chosen response if the run file does not name it in `data.answer`."""


def responses(row: Row, columns: Columns, prompt_tokens: int, config: RunConfig, renderer: Renderer) -> tuple[str, str]:
    """Returns the chosen and the rejected response of a row.

    Args:
        prompt_tokens: length of the row's prompt.

    Raises:
        UserError: a response is missing or too long, or the two are equal; names the column or key.
    """
    chosen, rejected = (_response(column(row, path), path) for path in (columns.answer, config.data.rejected))
    if chosen == rejected:
        raise UserError("the chosen and the rejected response are the same")
    longest = max(len(renderer.response_ids(text)) for text in (chosen, rejected))
    if longest > config.sampling.max_tokens:
        raise UserError(f"a response of {longest} tokens is above sampling.max_tokens={config.sampling.max_tokens}")
    if prompt_tokens + longest > config.model.max_length:
        raise UserError(
            f"prompt and response make {prompt_tokens + longest} tokens, above "
            f"model.max_length={config.model.max_length}"
        )
    return chosen, rejected


def _response(value: Any, path: str) -> str:
    """The text of a response, which may be given as the last turn of chat messages."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"column {path!r} holds {value!r}, which is not a response")
    return value
