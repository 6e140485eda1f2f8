"""The task of a group: what to sample, what to measure, and with which policies.

The models have the fields of policy.proto and of PromptTask. `cepo.messages.groups` re-exports them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Self

from pydantic import Field, field_validator, model_validator

from cepo.messages.arrays import Int32Array
from cepo.messages.environments import Environment as Environment
from cepo.messages.reward import Reward
from cepo.messages.vocabulary import (
    ContextName,
    Contract,
    Feedback,
    FollowUp,
    Pick,
    Placement,
    Purpose,
    Stage,
    TeachWhen,
    Want,
    Weights,
)

MAX_INT64 = 2**63 - 1


class PolicyRef(Contract):
    """An adapter by its content; version 0 is the base model, which has no adapter."""

    version: int = Field(ge=0, le=MAX_INT64)
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    @model_validator(mode="after")
    def _base_has_no_bytes(self) -> Self:
        if (self.version == 0) != (self.sha256 == ""):
            raise ValueError("version 0 is the base model and has no sha256; every other version has one")
        return self

    @property
    def name(self) -> str:
        """A name that is unique for the content, so that an engine cannot serve an old adapter under the same name."""
        return f"v{self.version:06d}-{self.sha256[:12]}" if self.version else "base"


class PolicyRequest(PolicyRef):
    """A request for the bytes of an adapter, by a process that may send them on."""

    port: int = Field(default=0, ge=0, le=65535)
    """The gRPC port at which the caller sends on what it receives; 0 if it sends nothing on."""
    service: str = Field(default="", pattern=r"^[\w.-]{0,63}$")
    """The name in the caller's certificate."""
    machine: str = Field(default="", max_length=253)
    """Engines of one machine fetch an adapter over the network once."""
    failed: str = Field(default="", max_length=300)
    """The address of a holder that did not send the adapter, or sent other bytes."""

    @property
    def policy(self) -> PolicyRef:
        return PolicyRef(version=self.version, sha256=self.sha256)


BASE_POLICY = PolicyRef(version=0)


class Ask(Contract):
    """One measurement that an algorithm needs from the teacher."""

    context: ContextName
    want: Want = Want.LOGPROBS
    otherwise: ContextName | None = None
    """The context to score if `context` does not exist; None: the row is not applicable."""
    exclude_self: bool = False
    """A response is never scored under a hint that is taken from itself."""
    weights: Weights = Weights.TEACHER
    feedback: Feedback = Feedback.ANSWER
    tokens: int = Field(default=0, ge=0)
    """Number of tokens of a peer's prefix or suffix."""
    pick: Pick = Pick.REWARD
    rank: int = Field(default=0, ge=0)
    """The hint shows the rank-th candidate, from 0. Rejected candidates that are shown by their answers have different
    answers."""
    top: int = Field(default=0, ge=0)
    """Distribution: number of the likeliest tokens at each position; 0: the whole vocabulary."""
    support: Weights = Weights.TEACHER
    """Distribution: the weights that choose the likeliest tokens. If they differ from `weights`, they choose under the
    plain context."""
    as_published: bool = False
    """Rejected: any rejected rollout is a candidate, with the answer that the reference code extracts from it."""
    without_images: bool = False
    """The task's images are replaced by padding, as in the reference code."""

    @model_validator(mode="after")
    def _meaningful(self) -> Self:
        if self.context is ContextName.REJECTED and self.feedback in (Feedback.SOLUTION, Feedback.PEER_ANSWER):
            raise ValueError(f"a context REJECTED cannot show {self.feedback.name}")
        if (self.feedback in (Feedback.PEER_PREFIX, Feedback.PEER_SUFFIX)) != (self.tokens > 0):
            raise ValueError("tokens needs feedback PEER_PREFIX or PEER_SUFFIX, and these need tokens")
        if self.pick is Pick.OWN and (self.context is not ContextName.REJECTED or self.exclude_self or self.rank):
            raise ValueError("pick OWN needs context REJECTED, rank 0 and no exclude_self")
        if self.as_published and self.context is not ContextName.REJECTED:
            raise ValueError("as_published needs context REJECTED")
        return self


def evidence_bytes(asks: Iterable[Ask], vocabulary: int, tokens: int) -> int:
    """The bytes of the distributions that the teacher sends for a group, 8 for each token id and its log-prob.

    Example: the 50 likeliest tokens at 8 x 1,024 positions take 3.3 MB, a vocabulary of 151,936 tokens takes 10 GB.

    Args:
        tokens: response tokens of the group.
    """
    return sum(8 * (ask.top or vocabulary) * tokens for ask in asks if ask.want is Want.DISTRIBUTION)


class Sampling(Contract):
    """Sampling parameters. All log-probs of a task are of logits divided by this temperature."""

    temperature: float = Field(default=1.0, ge=0.01)
    """At least 0.01, the lowest temperature at which vLLM samples."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_tokens: int = Field(ge=1)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Subtracted from the logits of tokens that the response already contains."""


class SessionTerms(Contract):
    """How the sessions of agents sample groups for a run with `data.source = "groups"`."""

    policy: PolicyRef
    sampling: Sampling
    samples: int = Field(ge=2)
    """The number of sessions of a group."""


class Message(Contract):
    """One chat turn; each `<image>` in it stands for the next image of the task."""

    role: str = Field(min_length=1)
    content: str
    extra: str = ""
    """Further fields of the turn for the chat template, as a JSON object: `tool_calls`, `reasoning_content`, `name`. A
    field `tools` holds the functions that the conversation declares."""

    @field_validator("extra")
    @classmethod
    def _holds_fields(cls, extra: str) -> str:
        if not extra:
            return extra
        try:
            fields = json.loads(extra)
        except RecursionError as error:
            raise ValueError("extra is nested too deeply") from error
        if not isinstance(fields, dict) or {"role", "content"} & set(fields):
            raise ValueError("extra must be a JSON object without role and content")
        for name in ("tools", "tool_calls"):
            listed = fields.get(name, [])
            if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
                raise ValueError(f"extra: {name} must be a list of objects")
        json.dumps(fields, ensure_ascii=False).encode()  # a lone surrogate is a ValueError
        return extra


class ImageRef(Contract):
    """An image by its content. The bytes are in the image store, never in a message."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    media_type: str
    width: int = Field(ge=1)
    height: int = Field(ge=1)


class Origin(Contract):
    """The finished group that a follow-up task was made from, and what the follow-up is for."""

    kind: FollowUp
    index: int = Field(ge=0)
    """Index of that group's task in the same step."""
    sample: int = Field(default=-1, ge=-1)
    """Index of the completion; -1 if the follow-up is about the group as a whole."""


class PromptTask(Contract):
    """From the feeder to rollout: a prompt, the number of samples, the policy, and the measurements to take."""

    run: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._+-]+$")
    step: int = Field(ge=0)
    index: int = Field(ge=0)
    purpose: Purpose
    messages: tuple[Message, ...] = Field(min_length=1)
    images: tuple[ImageRef, ...] = ()
    reference_answer: str
    answer_kind: str = ""
    hint: str
    samples: int = Field(ge=1)
    sampling: Sampling
    seed: int = Field(ge=0, le=MAX_INT64)
    asks: tuple[Ask, ...] = ()
    teach_when: TeachWhen = TeachWhen.ALWAYS
    route: tuple[Stage, ...] = Field(min_length=1)
    policy: PolicyRef = BASE_POLICY
    teacher: PolicyRef = BASE_POLICY
    reference_solution: str = ""
    """A worked solution; empty: unknown."""
    placement: Placement = Placement.USER
    prefix: Int32Array = Int32Array()
    """Token ids the response starts with. They count towards `max_tokens`."""
    origin: Origin | None = None
    reward: Reward = Reward()
    step_delimiter: str = ""
    """Separates the reasoning steps of a response; empty: responses are not split."""
    base_share: float = Field(default=0.0, ge=0, lt=1)
    """Weight of the base model's logits in the teacher's logits: `(1 - share) * teacher + share * base`."""

    environment: Environment | None = None
    """Answers the policy's turns; None: a response is one turn."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.environment is not None and self.prefix:
            raise ValueError("a task in an environment has no prefix, because no environment could continue from one")
        if list(self.route) != sorted(set(self.route)):
            raise ValueError(f"route must keep the order of the stages, got {self.route}")
        if any(ask.context is not ContextName.PLAIN for ask in self.asks) and "{answer}" not in self.hint:
            raise ValueError("hint must contain {answer}, or every context is the same")
        if len(self.prefix) >= self.sampling.max_tokens:
            raise ValueError(
                f"a prefix of {len(self.prefix)} tokens leaves none of max_tokens={self.sampling.max_tokens}"
            )
        marks = sum(message.content.count("<image>") for message in self.messages if message.role != "system")
        if self.images and marks != len(self.images):
            raise ValueError(f"{len(self.images)} images for {marks} <image> marks in the messages")
        return self

    @property
    def group_id(self) -> str:
        """`run/step/index`, or `run/eval-step/index` for an evaluation group."""
        middle = "eval-" if self.purpose is Purpose.EVAL else ""
        return f"{self.run}/{middle}{self.step}/{self.index}"

    def policy_of(self, weights: Weights) -> PolicyRef:
        """The policy that provides these weights."""
        return {Weights.TEACHER: self.teacher, Weights.REFERENCE: BASE_POLICY, Weights.POLICY: self.policy}[weights]

    def after(self, stage: Stage) -> Stage | None:
        """The next stage of the route, or None if the group is ready."""
        later = [s for s in self.route if s > stage]
        return later[0] if later else None
