"""The base of the request models of REST and files: closed, with errors that name the nearest key."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from cepo.errors import did_you_mean


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
