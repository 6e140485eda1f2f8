"""The enums of the messages, with the numbers of their protobuf enums, and the base class of all messages."""

from __future__ import annotations

from enum import IntEnum

from pydantic import BaseModel, ConfigDict

CORRECT_FROM = 0.5
"""The accuracy from which a response is correct; a reward for its format alone does not make it so."""
DEAD_BAND = 0.01
"""Nats. Metrics count a delta as positive or negative only beyond this band; most smaller deltas are rounding."""


class Contract(BaseModel):
    """The base class of all messages: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_enum_values=False)


def changed(model: BaseModel, key: str) -> bool:
    """Whether a field of a model differs from its default."""
    return bool(getattr(model, key) != type(model).model_fields[key].default)


class Stage(IntEnum):
    """The stages of a group. Each has a stream of the same name."""

    ROLLOUT = 1
    VERIFY = 2
    TEACH = 3


class Purpose(IntEnum):
    """The purpose of a group. Training groups reach the learner; evaluation groups are only graded."""

    TRAIN = 1
    EVAL = 2


class FollowUp(IntEnum):
    """The purpose of a follow-up task, which is made from a finished group of the same step."""

    CONTINUATION = 1
    """Fresh responses to the same prompt, or to it and the first tokens of a response; they estimate that value."""
    DEMONSTRATION = 2
    """Responses to a privileged prompt, which are trained on under the prompt of the origin."""


class ContextName(IntEnum):
    """The context under which a response is scored."""

    PLAIN = 1
    """x: the question alone."""
    ANSWER = 2
    """(x, r+): the question with a correct answer as a hint."""
    REJECTED = 3
    """(x, r-): the question with the answer of a rejected rollout of the same group as a hint."""


class Feedback(IntEnum):
    """The content of a hint (arXiv:2605.19436, Table 5)."""

    ANSWER = 1
    """r+: the reference answer; r-: the answer of a rejected rollout."""
    SOLUTION = 2
    """r+ only: the reference solution."""
    PEER_ANSWER = 3
    """r+ only: the answer of a correct rollout of the group."""
    PEER_FULL = 4
    """The whole response of a correct (r+) or rejected (r-) rollout."""
    PEER_PREFIX = 5
    PEER_SUFFIX = 6


class Pick(IntEnum):
    """The rollout of the group that a hint shows; ties go to the lower index."""

    REWARD = 1
    """r+: the highest reward; r-: the lowest."""
    SHORTEST = 2
    MOST_COMMON = 3
    """The most common answer."""
    RANDOM = 4
    """Drawn with the task's seed."""
    OWN = 5
    """r- only: the response itself if it was rejected, otherwise the one of the lowest reward."""


class Placement(IntEnum):
    """The position of the hint."""

    USER = 1
    """The last line of the user's turn: the paper's template."""
    ASSISTANT = 2
    """After the generation prompt, before the response: the reference code."""
    SYSTEM = 3
    """The first system message."""


class Weights(IntEnum):
    """The weights that score a response."""

    TEACHER = 1
    """The task's teacher."""
    REFERENCE = 2
    """The base model."""
    POLICY = 3
    """The policy that sampled."""


class Want(IntEnum):
    """The quantity measured under a context."""

    LOGPROBS = 1
    """One log-prob per sampled token, of logits over the rollout temperature."""
    DISTRIBUTION = 2
    """Also the log-probs of the likeliest tokens at every position."""
    HIDDEN = 3
    """The mean last hidden state of the response."""


class TeachWhen(IntEnum):
    """The groups that need evidence; the others skip the teacher."""

    ALWAYS = 1
    REWARD_SPREAD = 2
    """Groups in which all rewards are equal have zero advantage and skip the teacher."""


class FinishReason(IntEnum):
    """The reason why sampling ended."""

    STOP = 1
    LENGTH = 2
    """Cut at max_tokens: the last token is not an end of sequence."""


class Outcome(IntEnum):
    """The result of the verifier. A timeout or a grader error is a failed verdict, not a wrong answer."""

    CORRECT = 1
    WRONG = 2
    UNPARSED = 3
    """The response is finished but contains no answer."""
    TRUNCATED = 4
    """The response was cut at max_tokens before an answer."""
    TIMEOUT = 5
    GRADER_ERROR = 6


class EvidenceReason(IntEnum):
    """The reason for the context of a row."""

    ASKED = 1
    NO_REJECTED = 2
    NO_ANSWER = 3
    SAME_AS_ANSWER = 4
    ONLY_SELF = 5
    NO_CORRECT = 6
    NO_SOLUTION = 7
    TOO_FEW = 8
    """There are fewer different rejected answers than the ask needs."""
