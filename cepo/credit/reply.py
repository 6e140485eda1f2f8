"""The reply of `POST /v1/credit`, which a notebook shows as a heat map."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cepo.credit.request import Method
from cepo.messages.groups import PolicyRef
from cepo.messages.spans import Given


class _Returned(BaseModel):
    model_config = ConfigDict(frozen=True)


class Token(_Returned):
    """One token and its credit."""

    id: int
    text: str = Field(description="response.text[start:end]")
    start: int = Field(description="offset in characters; a character made of several tokens belongs to the last one")
    end: int
    logp_plain: float | None
    logp_positive: float | None
    logp_negative: float | None = Field(
        description="under r-, or under the context that replaces it; null: the method needs no r- and none was chosen"
    )
    delta: float
    weight: float = Field(description="exp(sign(advantage of the response) * delta)")
    weight_clipped: float
    clipped: bool
    advantage: float = Field(description="the factor of this token's gradient in training; 0 for a given token")


class Negative(_Returned):
    """The r- of one response, or the context that replaces it, and the reason."""

    context: str = Field(description="rejected, plain, answer, or none")
    answer: str
    source: int = Field(
        description="index of the response that the answer comes from; -1: none, or the answer was given"
    )
    reason: str = Field(
        description="given; asked: chosen as in training; no_rejected, no_answer, same_as_answer, only_self: why there "
        "is no r-; not_asked: the method needs no r- and there is no verifier to choose one"
    )


class Grade(_Returned):
    """The verdict of the verifier."""

    outcome: str
    accuracy: float
    extracted: str
    reason: str


class ResponseCredit(_Returned):
    """One response, token by token."""

    text: str
    tokens: list[Token]
    reward: float | None
    advantage: float
    given: list[Given] = Field(
        default=[], description="the tokens that got no credit, because the model was given them between its turns"
    )
    advantage_from: str = Field(
        description="given; group: normalised over the rewards of the responses, as in GRPO; "
        "single: one response has no group, so +1 for a reward of at least 0.5 and -1 below"
    )
    grade: Grade | None = Field(description="null: nothing had to be graded")
    negative: Negative
    delta_pos_fraction: float = Field(description="share of tokens with delta above dead_band")
    delta_neg_fraction: float = Field(description="share of tokens with delta below -dead_band")
    clip_rate: float
    sharpness: float | None = Field(
        description="Proposition 1: share of tokens at which the contrast with r- is sharper than with the plain "
        "prompt (log-prob under r- below plain by more than dead_band if the advantage is positive, above if "
        "negative); null: no r-, or an advantage of 0"
    )


class CreditReply(_Returned):
    """The credit of a group, with the policy, engine and tokenizer that scored it. A notebook shows its heat map."""

    responses: list[ResponseCredit]
    method: Method
    positive: str
    template: str
    temperature: float
    dead_band: float
    policy: PolicyRef = Field(description="sha256 of the adapter; version 0 is the base model without an adapter")
    tokenizer_sha256: str
    engine: str
    prompt_token_ids: list[int]
    compared: list[CreditReply] = Field(default=[], description="one reply for each entry of `compare`, in order")

    def frame(self) -> Any:
        """Returns a pandas DataFrame with a row for each token of each response under each method.

        Raises:
            UserError: pandas is not installed.
        """
        from cepo.credit.display import frame

        return frame(self)

    def plot(self, response: int = 0) -> Any:
        """Draws the heat map of a response and returns the matplotlib Axes.

        Raises:
            UserError: matplotlib is not installed, or there is no such response.
        """
        from cepo.credit.display import axes

        return axes(self, response)

    def __repr__(self) -> str:
        from cepo.credit.display import summary

        return summary(self)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        from cepo.credit.display import html

        return html(self)
