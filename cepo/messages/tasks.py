"""The task, hop 0: what is to be sampled and measured, by whom; the twin of policy.proto and of PromptTask.

`cepo.messages.groups` re-exports it all.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from cepo.messages.arrays import Int32Array
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
    """An adapter by content; version 0 is the base model and has no bytes."""

    version: int = Field(ge=0, le=MAX_INT64)
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    @model_validator(mode="after")
    def _base_has_no_bytes(self) -> Self:
        if (self.version == 0) != (self.sha256 == ""):
            raise ValueError("version 0 is the base model and has no sha256; every other version has one")
        return self

    @property
    def name(self) -> str:
        """Unique per content, so that an engine never serves stale state under a reused name."""
        return f"v{self.version:06d}-{self.sha256[:12]}" if self.version else "base"


BASE_POLICY = PolicyRef(version=0)


class Ask(Contract):
    """One piece of evidence an algorithm needs from the teacher."""

    context: ContextName
    want: Want = Want.LOGPROBS
    otherwise: ContextName | None = None
    """Scored instead where the context does not exist; None: the row is not applicable."""
    exclude_self: bool = False
    """A rollout is never shown itself."""
    weights: Weights = Weights.TEACHER
    feedback: Feedback = Feedback.ANSWER
    tokens: int = Field(default=0, ge=0)
    """Length of a peer's prefix or suffix."""
    pick: Pick = Pick.REWARD
    rank: int = Field(default=0, ge=0)
    """Shows the rank-th of the rollouts that could be shown; rejected answers all differ."""
    top: int = Field(default=0, ge=0)
    """Distribution: how many of the likeliest tokens; 0: the whole vocabulary."""
    support: Weights = Weights.TEACHER
    """Distribution: whose likeliest tokens; another's than `weights` are found under the plain context."""
    as_published: bool = False
    """Rejected: any rejected rollout may be shown, with the answer the reference code finds in it."""
    without_images: bool = False
    """Padding stands in the places of the task's images, as in the reference code."""

    @model_validator(mode="after")
    def _meaningful(self) -> Self:
        if self.context is ContextName.REJECTED and self.feedback in (Feedback.SOLUTION, Feedback.PEER_ANSWER):
            raise ValueError(f"a rejected context cannot show {self.feedback.name}")
        if (self.feedback in (Feedback.PEER_PREFIX, Feedback.PEER_SUFFIX)) != (self.tokens > 0):
            raise ValueError("tokens is the length of a peer's prefix or suffix, and of nothing else")
        if self.as_published and self.context is not ContextName.REJECTED:
            raise ValueError("as_published is about the choice of a rejected rollout, and of nothing else")
        return self


class Sampling(Contract):
    """Sampling parameters; log-probs everywhere are of logits divided by this temperature."""

    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_tokens: int = Field(ge=1)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Taken from the logits of tokens that the response holds already."""


class Message(Contract):
    """One chat turn; each <image> in it stands for the next of the task's images."""

    role: str = Field(min_length=1)
    content: str


class ImageRef(Contract):
    """An image by content; its bytes are in the store, never in a message."""

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
    """Hop 0, feeder -> rollout: one prompt, how often to sample it, with which policy, and what to measure."""

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
    """A worked solution; empty: none is known."""
    placement: Placement = Placement.USER
    prefix: Int32Array = Int32Array()
    """Token ids the response starts with. They count towards `max_tokens`."""
    origin: Origin | None = None
    reward: Reward = Reward()
    step_delimiter: str = ""
    """Responses are split into reasoning steps here; empty: the steps are not wanted."""
    base_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the base model's logits in the teacher's."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
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
        """run/step/index; evaluation groups have their own name space."""
        middle = "eval-" if self.purpose is Purpose.EVAL else ""
        return f"{self.run}/{middle}{self.step}/{self.index}"

    def policy_of(self, weights: Weights) -> PolicyRef:
        """The policy whose weights are meant."""
        return {Weights.TEACHER: self.teacher, Weights.REFERENCE: BASE_POLICY, Weights.POLICY: self.policy}[weights]

    def after(self, stage: Stage) -> Stage | None:
        """The stage that follows on the route, or None when the group is ready."""
        later = [s for s in self.route if s > stage]
        return later[0] if later else None
