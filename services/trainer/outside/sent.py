"""The request and the reply of `POST /v1/groups`.

{"id": "task-17", "policy_version": 3,
 "messages": [{"role": "user", "content": "23 + 45 = ?"}], "answer": "68",
 "responses": [{"token_ids": [41, 7, 90, 2], "logps": [-0.1, -2.3, -0.4, 0.0], "reward": 1.0},
               {"token_ids": [41, 9, 12, 12, 88, 2], "given": [{"start": 2, "end": 4}], "reward": 0.0}]}
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cepo.credit import MAX_RESPONSES, MAX_TEXT_CHARACTERS, Scalar, TokenIds
from cepo.messages.groups import MAX_INT64, Message
from cepo.messages.requests import SentModel, require_turns, require_unicode
from cepo.messages.spans import Given, check_given

LOGP_ROUNDING = 1e-3
"""Nats. Engines report log-probs slightly above 0, because of rounding."""
LogProb = Annotated[float, Field(ge=-1e6, le=LOGP_ROUNDING)]


class SentResponse(SentModel):
    """A response that was sampled elsewhere."""

    token_ids: TokenIds | None = Field(default=None, min_length=1, description="every token, as the engine had it")
    given: list[Given] = Field(
        default=[], description="with token_ids: the tokens that the policy read between its turns and did not sample"
    )
    logps: list[LogProb | None] | None = Field(
        default=None,
        description="with token_ids: a log-prob for each token, at the run's temperature; null at given tokens. Left "
        "out: the teacher computes them",
    )
    messages: list[Message] | None = Field(
        default=None, description="the turns, from an assistant turn to an assistant turn, in place of token_ids"
    )
    reward: Scalar | None = Field(default=None, description="left out: the verifier grades the response")
    truncated: bool = Field(default=False, description="whether a limit cut the response")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.token_ids is None) == (self.messages is None):
            raise ValueError("give either token_ids or messages")
        if self.token_ids is None and (self.given or self.logps is not None):
            raise ValueError("given and logps need token_ids")
        ids = self.token_ids or ()
        check_given(self.given, len(ids))
        if self.logps is not None:
            if len(self.logps) != len(ids):
                raise ValueError(f"{len(self.logps)} logps for {len(ids)} token_ids")
            given = {at for span in self.given for at in range(span.start, span.end)}
            if missing := [at for at, logp in enumerate(self.logps) if logp is None and at not in given]:
                raise ValueError(f"logps.{missing[0]} is null, but this token was sampled")
        return self

    @field_validator("messages")
    @classmethod
    def _are_turns(cls, messages: list[Message] | None) -> list[Message] | None:
        return require_turns(messages)


class SentGroup(SentModel):
    """Responses to one prompt, sampled with one policy of the run."""

    id: str = Field(
        pattern=r"^[A-Za-z0-9._+/:-]{1,200}$", description="names the group; sending it again changes nothing"
    )
    policy_version: int = Field(ge=0, le=MAX_INT64, description="the version that sampled every response")
    messages: list[Message] = Field(min_length=1, description="the prompt, as the run's chat template renders it")
    prompt_token_ids: TokenIds | None = Field(
        default=None, min_length=1, description="the prompt as the engine read it; left out: as `messages` are rendered"
    )
    answer: Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)] = Field(
        default="", description="the reference answer, which grades the responses and is the hint r+; empty: none"
    )
    responses: list[SentResponse] = Field(min_length=2, max_length=MAX_RESPONSES)

    @model_validator(mode="after")
    def _all_are_rewarded_or_none(self) -> Self:
        rewarded = [response.reward is not None for response in self.responses]
        if any(rewarded) and not all(rewarded):
            raise ValueError(f"responses.{rewarded.index(False)}: give every response a reward, or none")
        if not any(rewarded) and not self.answer:
            raise ValueError("answer: give the reference answer, or every response a reward")
        return self

    @field_validator("messages")
    @classmethod
    def _are_unicode(cls, messages: list[Message]) -> list[Message]:
        require_unicode(messages)
        return messages


class TakenGroup(BaseModel):
    """Where a group is trained on."""

    model_config = ConfigDict(frozen=True)

    id: str
    step: int = Field(description="the step that trains on the group")
    index: int = Field(description="its index among the groups of the step")
    waiting_for: int = Field(description="groups that the step still waits for")
