"""The turns of a conversation: in the format of chat templates, and as the tokens that come before and after a turn.

A response of several turns is never rendered as a whole, because templates rewrite earlier turns. Its sampled turns are
token ids; what follows each is rendered here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cepo.errors import UserError
from cepo.messages.hints import MARK
from cepo.messages.spans import Trajectory
from cepo.messages.tasks import Message

if TYPE_CHECKING:
    from cepo.prompts.renderer import Renderer

SAID = "QyzzyxQ"
"""Stands for the text of a sampled turn while the template renders what follows it."""


def template_turns(messages: Sequence[Message], images: int) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages in the format of chat templates, and the tools that the conversation declares.

    A message without images keeps a string as its content, because not every template accepts a list of parts. For two
    images, "a<image>b" becomes `[{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]`.
    """
    turns: list[dict[str, Any]] = []
    tools: list[Any] = []
    for message in messages:
        texts = message.content.split(MARK, 0 if message.role == "system" else images)
        images -= len(texts) - 1
        parts = [part for text in texts for part in ({"type": "image"}, {"type": "text", "text": text})][1:]
        kept = [part for part in parts if part.get("text") != ""]
        extra = json.loads(message.extra) if message.extra else {}
        tools += extra.pop("tools", [])
        turns.append({"role": message.role, "content": kept if len(texts) > 1 else message.content, **extra})
    return turns, tools


def given_ids(renderer: Renderer, messages: Sequence[Message], reply: Sequence[Message]) -> tuple[int, ...]:
    """`Renderer.given_ids`."""
    ids = _after(renderer, messages, reply)
    return ids[_turn_length(renderer, ids) :]


def said_ids(renderer: Renderer, messages: Sequence[Message]) -> tuple[int, ...]:
    """Token ids of an assistant's turn: its text, what the template writes of its tool calls, and the turn's end.

    Args:
        messages: the conversation up to and including the assistant's message.

    Raises:
        UserError: the chat template rejects the messages.
    """
    ids = _after(renderer, messages, (), messages[-1].content)
    end = _turn_length(renderer, ids)
    return ids[:end] if end else (*ids, *renderer.turn_end)


def trajectory_of(renderer: Renderer, prompt: Sequence[Message], turns: Sequence[Message]) -> Trajectory:
    """A response given as messages: assistant turns, which count as sampled, with tool results and user turns between.

    Args:
        prompt: the conversation before the response.
        turns: the response; the first and the last are assistant turns.

    Raises:
        UserError: the chat template rejects the messages.
    """
    trajectory, begin = Trajectory(), 0
    for at, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        if at:
            trajectory.give(given_ids(renderer, (*prompt, *turns[:begin]), turns[begin:at]))
        ids = said_ids(renderer, (*prompt, *turns[: at + 1]))
        trajectory.sample(ids, [0.0] * len(ids))
        begin = at + 1
    return trajectory


def _after(
    renderer: Renderer, messages: Sequence[Message], reply: Sequence[Message], content: str = ""
) -> tuple[int, ...]:
    """Token ids of a text, and of all that the template writes after the text of the last of `messages`."""
    *before, said = messages
    turns, tools = template_turns((*before, said.model_copy(update={"content": SAID}), *reply), 0)
    (turns, tools, content), shown = renderer.control.hidden((turns, tools, content))
    _, marked, after = renderer.template.render(turns, tools, opened=bool(reply)).rpartition(SAID)
    if not marked:
        raise UserError("the model's chat template drops the assistant's message; use another template")
    return renderer.control.encode(content + after, shown)


def _turn_length(renderer: Renderer, ids: Sequence[int]) -> int:
    """The number of ids up to the end of the first turn; 0 if the template does not end turns."""
    ends = renderer.turn_end[-1:] if renderer.template.turn_end else ()
    return next((at + 1 for at, token in enumerate(ids) if token in ends), 0)
