"""Chat messages from a row's question: a text, a list of turns, or such a list as JSON.

Every field that a chat template reads is kept, or the row is refused; no turn is guessed. Turns with these contents:

    "2 + 2 = ?"                                     the text
    [{"type": "text", "text": "2 + 2"}, ...]        the texts joined, with a mark for each image
    None, with tool_calls                           no text, and the calls
    None, a number, an object                       refused

ShareGPT's turns, {"from": "human", "value": "2 + 2 = ?"}, are read as {"role": "user", "content": "2 + 2 = ?"}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cepo.data.rows import Row
from cepo.errors import UserError
from cepo.messages.groups import Message
from cepo.messages.hints import MARK

TOOLS = "tools"
"""Column of the functions that a row's conversation declares, as in TRL."""
_FIELDS = ("tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking")
"""Fields of a turn that chat templates read."""
_SHAREGPT = {"from", "value"}
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}
"""Roles of ShareGPT that chat templates name otherwise; "system", "user" and "assistant" stay."""
_IMAGE_KEYS = ("image", "image_url", "url", "path", "base64")
_SHOWN_CHARACTERS = 80


def messages_of(question: Any, path: str, *, images: bool) -> tuple[Message, ...]:
    """The turns of a question.

    Args:
        path: the column, for messages.
        images: whether the row has a column of images, which image parts need.

    Raises:
        UserError: the column holds no conversation that ends with a question; names the column and the turn.
    """
    turns = _listed(question)
    if turns is None:
        raise UserError(f"column {path!r} holds neither a text nor chat messages")
    messages = tuple(
        _message(turn, f"column {path!r}" + (f", turn {at}," if len(turns) > 1 else ""), images=images)
        for at, turn in enumerate(turns)
    )
    last = messages[-1]
    if last.role not in ("user", "tool") or not any(m.role == "user" and m.content.strip() for m in messages):
        raise UserError(f"column {path!r} does not end with a user's question")
    if last.role == "user" and not last.content.strip():
        raise UserError(f"column {path!r} does not end with a user's question")
    return messages


def with_tools(messages: tuple[Message, ...], row: Row) -> tuple[Message, ...]:
    """The messages with the functions of the row's column `tools`, if it holds functions.

    Raises:
        UserError: the text of a tool is not Unicode.
    """
    tools = _functions(row.get(TOOLS))
    if not tools:
        return messages
    first = messages[0]
    extra = {**(json.loads(first.extra) if first.extra else {}), "tools": tools}
    return (first.model_copy(update={"extra": _json(extra, f"column {TOOLS!r}")}), *messages[1:])


def require_unicode(text: str, where: str) -> str:
    """Returns the text.

    Args:
        where: the beginning of the message, such as "column 'answer'".

    Raises:
        UserError: it holds half of a surrogate pair, which scraped data contains and no tokenizer takes.
    """
    for at, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise UserError(f"{where} holds a lone surrogate (\\u{ord(character):04x}) at character {at}; remove it")
    return text


def _listed(question: Any) -> list[Row] | None:
    """The turns of a question, unread; None if it is no conversation."""
    if isinstance(question, str):
        parsed = _parsed(question) if question.lstrip().startswith("[") else None
        return parsed if _are_turns(parsed) else [{"role": "user", "content": question}]
    return question if _are_turns(question) else None


def _are_turns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and ("role" in turn or turn.keys() >= _SHAREGPT) for turn in value)
    )


def as_chat(turn: Row) -> Row:
    """The turn with `role` and `content`, also of ShareGPT's `from` and `value`."""
    if turn.get("role") is not None or not turn.keys() >= _SHAREGPT:
        return turn
    role = turn["from"]
    return {
        **turn,
        "role": _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role,
        "content": turn["value"],
    }


def _message(turn: Row, where: str, *, images: bool) -> Message:
    turn = as_chat(turn)
    role = turn["role"]
    if not isinstance(role, str) or not role:
        raise UserError(f"{where} has the role {role!r}, which is not a text")
    if _pruned(turn.get("function_call")) or role == "function_call":
        raise UserError(f"{where} holds a function_call; write it as tool_calls")
    extra = {name: value for name in _FIELDS if (value := _pruned(turn.get(name))) not in (None, "", [], {})}
    if "tool_calls" in extra:
        extra["tool_calls"] = _calls(extra["tool_calls"], where)
    content = turn.get("content")
    if content is None and "tool_calls" in extra:
        content = ""
    if isinstance(content, list):
        content = _joined(content, role, where, images=images)
    if not isinstance(content, str):
        raise UserError(f"{where} holds the content {_short(content)}, which is not a text")
    require_unicode(content, where)
    return Message(role=role, content=content, extra=_json(extra, where) if extra else "")


def _joined(parts: Sequence[Any], role: str, where: str, *, images: bool) -> str:
    """The texts of content parts, with a mark for each image."""
    texts = []
    for part in parts:
        given = _pruned(part)
        match given:
            case {"type": "text", "text": str() as text}:
                texts.append(text)
            case {"type": "text"}:
                texts.append("")
            case {"type": "image"} if role == "system":
                raise UserError(f"{where} has an image in its system message; put it in a user's turn")
            case {"type": "image"} if any(key in given for key in _IMAGE_KEYS):
                raise UserError(f"{where} holds an image itself; move it to a column of images (data.images)")
            case {"type": "image"} if not images:
                raise UserError(f"{where} has an image part and no column holds images; name it in data.images")
            case {"type": "image"}:
                texts.append(MARK)
            case _:
                raise UserError(f"{where} holds a part that is neither a text nor an image: {_short(part)}")
    return "".join(texts)


def _calls(calls: Any, where: str) -> list[Any]:
    """Tool calls with their arguments as objects, as chat templates read them; OpenAI's API has them as JSON."""
    listed = _parsed(calls) if isinstance(calls, str) else calls
    if not isinstance(listed, list) or not all(isinstance(call, dict) for call in listed):
        raise UserError(f"{where} holds tool_calls that are no list of calls: {_short(calls)}")
    read = []
    for call in listed:
        function = dict(call.get("function", call))
        if not isinstance(function.get("name"), str):
            raise UserError(f"{where} holds a tool call without the function's name: {_short(call)}")
        if isinstance(function.get("arguments"), str):
            function["arguments"] = _parsed(function["arguments"])
            if not isinstance(function["arguments"], dict):
                raise UserError(f"{where} holds a tool call whose arguments are no JSON object: {_short(call)}")
        read.append({"type": "function", **call, "function": function} if "function" in call else function)
    return read


def _functions(tools: Any) -> list[Any]:
    """The functions in a cell; empty if the column holds anything else, as it may have another meaning."""
    listed = _pruned(_parsed(tools) if isinstance(tools, str) else tools)
    if not isinstance(listed, list):
        return []
    named = [tool for tool in listed if isinstance(tool, dict) and "name" in (tool.get("function") or tool)]
    return named if len(named) == len(listed) else []


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _pruned(value: Any) -> Any:
    """The value without the nulls in its objects: Parquet fills the fields that an object does not have with null."""
    if isinstance(value, dict):
        return {key: _pruned(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_pruned(each) for each in value]
    return value


def _json(value: Any, where: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} holds fields that are not JSON: {error}") from error
    return require_unicode(text, where)


def _short(value: Any) -> str:
    return repr(value)[:_SHOWN_CHARACTERS]
