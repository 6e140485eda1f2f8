"""Hint lines and image marks: pure functions of messages."""

from __future__ import annotations

from collections.abc import Sequence

from cepo.errors import UserError
from cepo.messages.tasks import Message
from cepo.messages.vocabulary import Placement

INSTRUCTION = r"Let's think step by step and put the final answer within \boxed{}."
MARK = "<image>"
"""Stands in a message for the next of its images; in a system message, where templates take none, it is text."""
HINT = "Here is a sample answer: {answer}"
"""The paper's template: the hint is the last line of the user's turn (arXiv:2605.19436, appendix)."""


def with_hint(
    messages: Sequence[Message], hint: str, answer: str, placement: Placement = Placement.USER
) -> tuple[Message, ...]:
    """The conversation with the hint as the last line of its last user turn (the paper's template).

    Question and images stay in front, so contexts share them. As a system message the hint is the last line of the
    first one, which is made where there is none.

    Raises:
        UserError: the conversation has no user turn.
    """
    line = hint.replace("{answer}", answer)
    if placement is Placement.SYSTEM:
        if messages[0].role != "system":
            return (Message(role="system", content=line), *messages)
        return (Message(role="system", content=f"{messages[0].content}\n{line}"), *messages[1:])
    for at in range(len(messages) - 1, -1, -1):
        if messages[at].role == "user":
            hinted = Message(role="user", content=f"{messages[at].content}\n{line}")
            return (*messages[:at], hinted, *messages[at + 1 :])
    raise UserError("the messages have no user turn to put the hint in")


def with_marks(messages: Sequence[Message], images: int) -> tuple[Message, ...]:
    """The messages with an `<image>` mark for each image: their own, or where they have none before the last turn.

    Raises:
        UserError: there are marks, and more or fewer than images.
    """
    marks = sum(message.content.count(MARK) for message in messages if message.role != "system")
    if marks == 0 and images:
        last = messages[-1]
        return (*messages[:-1], Message(role=last.role, content=MARK * images + last.content))
    if marks != images:
        raise UserError(
            f"holds {images} image{'s' * (images != 1)} for {marks} {MARK} mark{'s' * (marks != 1)} in the question; "
            f"write {MARK} where each belongs, or nowhere"
        )
    return tuple(messages)
