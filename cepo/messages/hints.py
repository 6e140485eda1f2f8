"""Hint lines and image marks: pure functions of messages."""

from __future__ import annotations

from collections.abc import Sequence

from cepo.errors import UserError
from cepo.messages.tasks import Message
from cepo.messages.vocabulary import Placement

INSTRUCTION = r"Let's think step by step and put the final answer within \boxed{}."
MARK = "<image>"
"""Marks the place of the next image in a message. In a system message it is plain text, because templates allow no
images there."""
HINT = "Here is a sample answer: {answer}"
"""The paper's template: the hint is the last line of the user's turn (arXiv:2605.19436, appendix)."""
QUESTION, PROMPT, ANSWER = "{question}", "{prompt}", "{answer}"
"""The placeholders of an instruction (`QUESTION`) and of a hint (`PROMPT`, `ANSWER`)."""


def with_instruction(question: str, instruction: str) -> str:
    """A question and the instruction: on a line of its own, or where the instruction has {question}.

    Example: "1 + 1 = ?" with "{question} Be brief." gives "1 + 1 = ? Be brief.".
    """
    if QUESTION in instruction:
        return question.join(instruction.split(QUESTION))
    return f"{question}\n{instruction}" if instruction else question


def with_hint(
    messages: Sequence[Message], hint: str, answer: str, placement: Placement = Placement.USER
) -> tuple[Message, ...]:
    """The conversation with the hint as the last line of its last user turn, or around it where the hint has {prompt}.

    The question and images come first, so that contexts share them. With `Placement.SYSTEM`, the hint is the last line
    of the first system message, which is created if there is none.

    Example: the turn "1 + 1 = ?" with the hint "{prompt}.\\nA sample answer: {answer}" and the answer 2 becomes
    "1 + 1 = ?.\\nA sample answer: 2".

    Raises:
        UserError: the conversation has no user turn.
    """
    if placement is Placement.SYSTEM:
        line = hint_line(hint, answer)
        if messages[0].role != "system":
            return (Message(role="system", content=line), *messages)
        return (messages[0].model_copy(update={"content": f"{messages[0].content}\n{line}"}), *messages[1:])
    for at in range(len(messages) - 1, -1, -1):
        if messages[at].role == "user":
            hinted = messages[at].model_copy(update={"content": hinted_turn(messages[at].content, hint, answer)})
            return (*messages[:at], hinted, *messages[at + 1 :])
    raise UserError("the messages have no user turn to put the hint in")


def hinted_turn(content: str, hint: str, answer: str) -> str:
    """The text of a user turn with the hint. Placeholders inside the turn and the answer are plain text."""
    template = hint if PROMPT in hint else f"{PROMPT}\n{hint}"
    return content.join(answer.join(part.split(ANSWER)) for part in template.split(PROMPT))


def hint_line(hint: str, answer: str) -> str:
    """The text of a hint that follows the user's turn."""
    return answer.join(hint.rpartition(PROMPT)[2].split(ANSWER))


def with_marks(messages: Sequence[Message], images: int) -> tuple[Message, ...]:
    """The messages with one `<image>` mark per image. If they have no marks, all go before the text of the last turn.

    Raises:
        UserError: there are marks, but not as many as images.
    """
    marks = sum(message.content.count(MARK) for message in messages if message.role != "system")
    if marks == 0 and images:
        last = messages[-1]
        return (*messages[:-1], last.model_copy(update={"content": MARK * images + last.content}))
    if marks != images:
        raise UserError(
            f"holds {images} image{'s' * (images != 1)} for {marks} {MARK} mark{'s' * (marks != 1)} in the question; "
            f"write {MARK} where each belongs, or nowhere"
        )
    return tuple(messages)
