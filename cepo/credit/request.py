"""The request of `POST /v1/credit`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, JsonValue, field_validator, model_validator

from cepo.messages.groups import BASE_POLICY, Message, PolicyRef
from cepo.messages.hints import HINT
from cepo.messages.requests import SentModel, require_turns, require_unicode
from cepo.messages.spans import Given, check_given
from cepo.messages.vocabulary import DEAD_BAND
from cepo.prompts.images import MAX_IMAGES

MAX_RESPONSES = 64
MAX_TEXT_CHARACTERS = 200_000
MAX_TOKENS = 131_072
MAX_ANSWER_CHARACTERS = 1000
MAX_BATCH = 256
MAX_VARIANTS = 4
MethodName = Literal["cepo", "rlsd", "grpo"]
METHODS: tuple[str, ...] = get_args(MethodName)

Scalar = Annotated[float, Field(ge=-1e6, le=1e6)]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
TokenIds = Annotated[list[int], Field(max_length=MAX_TOKENS, strict=False)]
Answer = Annotated[str, Field(min_length=1, max_length=MAX_ANSWER_CHARACTERS)]


def _named(sent: Any) -> Any:
    """A method that is given by its name alone."""
    if isinstance(sent, str):
        return {"name": sent}
    if not isinstance(sent, dict | Method):
        raise ValueError('give a name such as "cepo", or an object such as {"name": "cepo", "lam": 0.5}')
    return sent


def _worded(sent: Any) -> Any:
    """A response that is given as plain text."""
    if isinstance(sent, str):
        return {"text": sent}
    if not isinstance(sent, dict | Response):
        raise ValueError('give a text in quotes, or an object such as {"text": "...", "reward": 1.0}')
    return sent


class Method(SentModel):
    """How log-probs become credit: A [(1 - lam) + lam clip(exp(sign(A) delta), 1 - eps_w, 1 + eps_w)]."""

    name: MethodName = Field(
        default="cepo", description="delta is r+ over r- for cepo, r+ over the plain prompt for rlsd, and 0 for grpo"
    )
    lam: float = Field(default=0.5, ge=0, le=1, description="share of the evidence; no effect for grpo")
    eps_w: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="clip of the weight; left out: the method's default in training. A reply has the value used",
    )
    no_negative: Literal["rlsd", "grpo"] = Field(
        default="rlsd",
        description="cepo, for a response without r-: contrast r+ with the plain prompt (rlsd, the paper) or do not "
        "weigh the response (grpo)",
    )
    exclude_self: bool = Field(default=False, description="cepo: never contrast a response with its own answer")


class Response(SentModel):
    """A response to weigh, from this model or from any other source."""

    text: Text | None = Field(
        default=None, description="tokenized by the teacher; write out the end-of-turn token to have it scored"
    )
    token_ids: TokenIds | None = Field(default=None, description="scored unchanged, never re-tokenized")
    given: list[Given] = Field(
        default=[],
        description="with token_ids: the tokens that were given to the model between its turns, such as tool results",
    )
    messages: list[Message] | None = Field(
        default=None,
        description="the turns of a response with tools: assistant turns, which get credit, and the tool results and "
        "user turns between them, which get none; needs a prompt of messages",
    )
    reward: Scalar | None = Field(
        default=None, description="left out together with advantage: the response is graded against `positive`"
    )
    advantage: Scalar | None = Field(default=None, description="replaces the advantage computed from the rewards")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if sum(form is not None for form in (self.text, self.token_ids, self.messages)) != 1:
            raise ValueError("give one of text, token_ids and messages")
        if self.given and self.token_ids is None:
            raise ValueError("given needs token_ids; in messages the roles say what was given")
        check_given(self.given, len(self.token_ids or ()))
        return self

    @field_validator("messages")
    @classmethod
    def _are_turns(cls, messages: list[Message] | None) -> list[Message] | None:
        return require_turns(messages)


AnyMethod = Annotated[Method, BeforeValidator(_named, json_schema_input_type=Method | MethodName)]
"""A method as an object or by its name."""
AnyResponse = Annotated[Response, BeforeValidator(_worded, json_schema_input_type=Response | Text)]
"""A response as an object or as plain text."""


class Variant(SentModel):
    """The changes of a comparison; a field that is left out keeps the value of the request."""

    method: AnyMethod | None = None
    policy: PolicyRef | None = None


class CreditRequest(SentModel):
    """One prompt, its responses and the answers to contrast."""

    messages: list[Message] | None = Field(default=None, min_length=1, description="a chat, rendered by its template")
    chat_template_kwargs: dict[str, JsonValue] | None = Field(
        default=None,
        description="arguments of the chat template, such as enable_thinking; left out: those of the run",
    )
    prompt: Text | None = Field(default=None, min_length=1, description="the templated text of the prompt")
    prompt_token_ids: TokenIds | None = Field(default=None, min_length=1)
    images: list[str] = Field(
        default=[],
        max_length=MAX_IMAGES,
        description="data URIs; each <image> in the messages stands for the next one, and without such marks the "
        "images come first in the last turn; in a prompt the model's own placeholder stands for each",
    )
    responses: list[AnyResponse] = Field(
        min_length=1,
        max_length=MAX_RESPONSES,
        description="one group: the responses are graded and contrasted as siblings",
    )
    positive: Answer = Field(description="r+, the right answer")
    negative: Answer | None = Field(
        default=None, description="r-, a wrong answer; left out: chosen from the rejected responses, as in training"
    )
    kind: str = Field(default="", max_length=100, description="how answers are graded; empty: inferred from `positive`")
    method: AnyMethod = Method()
    policy: PolicyRef = Field(default=BASE_POLICY, description="the weights that score; version 0 is the base model")
    compare: list[Variant] = Field(
        default=[], max_length=MAX_VARIANTS, description="also score with each of these changes"
    )
    template: str = Field(default=HINT, max_length=10_000, description="the line of the prompt that holds the hint")
    temperature: float = Field(default=1.0, ge=0.01, le=100, description="logits are divided by it in every context")
    dead_band: float = Field(
        default=DEAD_BAND,
        ge=0,
        le=100,
        description="nats; the fractions and the sharpness of a response count only deltas beyond it",
    )

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if sum(form is not None for form in (self.messages, self.prompt, self.prompt_token_ids)) != 1:
            raise ValueError("give one of messages, prompt and prompt_token_ids")
        if self.messages is None and any(response.messages is not None for response in self.responses):
            raise ValueError("responses of messages need a prompt of messages; or give token_ids and the given spans")
        return self

    @field_validator("messages")
    @classmethod
    def _are_unicode(cls, messages: list[Message] | None) -> list[Message] | None:
        return require_unicode(messages)

    @field_validator("chat_template_kwargs")
    @classmethod
    def _are_texts(cls, arguments: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        json.dumps(arguments, ensure_ascii=False).encode()  # a lone surrogate is a ValueError
        return arguments

    @field_validator("template")
    @classmethod
    def _takes_an_answer(cls, template: str) -> str:
        if "{answer}" not in template:
            raise ValueError("must contain {answer}; otherwise every context is the same")
        return template

    @property
    def variants(self) -> list[CreditRequest]:
        """The request and one request for each comparison; each of them has an empty `compare`."""
        changes = [{}, *({k: getattr(v, k) for k in v.model_fields_set if getattr(v, k)} for v in self.compare)]
        return [self.model_copy(update={**change, "compare": []}) for change in changes]
