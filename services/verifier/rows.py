"""The request and reply rows, which REST and JSON-lines files share."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from cepo.answers.kinds import KINDS, OPTIONS
from cepo.messages.groups import Verdict
from cepo.messages.requests import SentModel
from services.verifier.verdicts import Item


class Request(SentModel):
    """A response and its reference answer."""

    response: str = Field(
        description="the whole response; its answer is in the last \\boxed{}, <answer>, ####, Answer:"
    )
    answer: str = Field(description="the reference: a bare answer, a boxed one, or a solution ending in '#### number'")
    kind: str = Field(
        default="",
        description=f"how answers are compared: {', '.join(KINDS)}, with the options {', '.join(OPTIONS)}; "
        "empty: inferred from the reference",
    )
    question: str = Field(default="", description="multiple choice: where the options are listed, a line each")

    def item(self) -> Item:
        return Item(self.response, self.answer, self.kind, question=self.question)


class Reply(BaseModel):
    """The verdict on one request."""

    model_config = ConfigDict(frozen=True)

    outcome: str = Field(description="correct, wrong, unparsed, timeout or grader_error")
    reward: float
    accuracy: float
    extracted: str = Field(description="the answer as written; empty when there is none")
    normalised: str = Field(description="the answer as compared")
    reason: str

    @classmethod
    def of(cls, verdict: Verdict) -> Self:
        return cls(**{**verdict.model_dump(), "outcome": verdict.outcome.name.lower()})
