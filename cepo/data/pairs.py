"""Pairs of a chosen and a rejected response in a data set, for methods that learn from pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cepo.data.columns import Columns
from cepo.data.rows import Row, column
from cepo.data.turns import as_chat, messages_of, require_unicode
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
    question = _turns(question_of(row, columns, config), columns)
    paths = (columns.answer, config.data.rejected)
    chosen, rejected = (_response(column(row, path), path, question) for path in paths)
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


def question_of(row: Row, columns: Columns, config: RunConfig) -> Any:
    """The question of a pair: its column, or the turns with which both responses begin.

    Example: chosen `[user, assistant A]` and rejected `[user, assistant B]` share `[user]`.

    Raises:
        UserError: there is no such column, or the responses share no turns before their last.
    """
    if columns.question:
        return column(row, columns.question)
    chosen, rejected = (column(row, path) for path in (columns.answer, config.data.rejected))
    if not (isinstance(chosen, list) and isinstance(rejected, list) and chosen[:-1] == rejected[:-1] and chosen[:-1]):
        raise UserError(
            f"columns {columns.answer!r} and {config.data.rejected!r} do not share the turns before their last; "
            "name the column of the question in data.question"
        )
    return chosen[:-1]


def _turns(question: Any, columns: Columns) -> list[tuple[str, str]]:
    messages = messages_of(question, columns.question or columns.answer, images=bool(columns.images))
    return [(message.role, message.content) for message in messages]


def _response(value: Any, path: str, question: list[tuple[str, str]]) -> str:
    """The text of a response, which may be given as a turn, or as the last turn of chat messages."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        *lead, last = (as_chat(turn) if isinstance(turn, dict) else turn for turn in value)
        if last.get("role", "assistant") != "assistant" or last.get("tool_calls"):
            raise UserError(f"column {path!r} does not end with an assistant's text")
        given = [(turn.get("role"), turn.get("content")) for turn in lead if isinstance(turn, dict)]
        if given and given != question:
            raise UserError(f"column {path!r} holds turns before its last that are not those of the question")
        value = last.get("content")
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"column {path!r} holds {value!r}, which is not a response")
    return require_unicode(value, f"column {path!r}")
