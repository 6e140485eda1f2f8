"""The base of the request models of REST and files: closed, with errors that name the nearest key."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from cepo.errors import did_you_mean
from cepo.messages.tasks import Message


class SentModel(BaseModel):
    """A frozen, strict model whose unknown keys are errors, as in "positve: unknown key; did you mean `positive`?"."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _knows_its_keys(cls, sent: Any) -> Any:
        unknown = [key for key in sent if key not in cls.model_fields] if isinstance(sent, dict) else []
        if unknown:
            reason = f"unknown key; {did_you_mean(str(unknown[0]), cls.model_fields)}"
            error = PydanticCustomError("unknown_key", "{reason}", {"reason": reason})
            raise ValidationError.from_exception_data(
                cls.__name__, [InitErrorDetails(type=error, loc=(unknown[0],), input=sent[unknown[0]])]
            )
        return sent


def require_turns(messages: list[Message] | None) -> list[Message] | None:
    """Checks that the turns of a response begin and end with the assistant's, with something between two of them."""
    roles = [message.role for message in messages] if messages is not None else ["assistant"]
    if roles[:1] != ["assistant"] or roles[-1:] != ["assistant"]:
        raise ValueError("the first and the last turn of a response must be assistant turns")
    if at := next((at for at, pair in enumerate(pairwise(roles), 1) if pair == ("assistant", "assistant")), 0):
        raise ValueError(f"turn {at} follows an assistant turn; join them, or write what was given between them")
    return require_unicode(messages)


def require_unicode(messages: list[Message] | None) -> list[Message] | None:
    """Checks that no text of the messages holds half of a surrogate pair."""
    for at, message in enumerate(messages or ()):
        if any("\ud800" <= character <= "\udfff" for character in message.role + message.content + message.extra):
            raise ValueError(f"turn {at} holds a lone surrogate, which is no character")
    return messages
