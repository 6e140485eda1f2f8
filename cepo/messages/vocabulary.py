"""The words of the messages: enums with the numbers of their protobuf twins, and what every message is."""

from __future__ import annotations

from enum import IntEnum

from pydantic import BaseModel, ConfigDict

CORRECT_FROM = 0.5
"""The accuracy from which a response is correct; a reward for its format alone does not make it so."""


class Contract(BaseModel):
    """Frozen and closed: an unknown field or a later assignment is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_enum_values=False)


def changed(model: BaseModel, key: str) -> bool:
    """Whether a field of a model differs from its default."""
    return bool(getattr(model, key) != type(model).model_fields[key].default)


class Stage(IntEnum):
    """The streams a group visits."""

    ROLLOUT = 1
    VERIFY = 2
    TEACH = 3


class Purpose(IntEnum):
    """Training groups reach the learner; evaluation groups are only counted."""

    TRAIN = 1
    EVAL = 2


class FollowUp(IntEnum):
    """What a task is for that was made from a finished group of the same step."""

    CONTINUATION = 1
    """Fresh responses to the same prompt, or to it and the first tokens of a response; they estimate that value."""
    DEMONSTRATION = 2
    """Responses to a privileged prompt, which are trained on under the prompt of the origin."""


class ContextName(IntEnum):
    """The context a response is scored under."""

    PLAIN = 1
    """x: the question alone."""
    ANSWER = 2
    """(x, r+): with what is right as a hint."""
    REJECTED = 3
    """(x, r-): with what a rejected rollout of the same group says as a hint."""


class Feedback(IntEnum):
    """What a hint shows (arXiv:2605.19436, Table 5)."""

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
    """Which rollout of the group is shown; ties go to the lower index."""

    REWARD = 1
    """r+: the highest reward; r-: the lowest."""
    SHORTEST = 2
    MOST_COMMON = 3
    """The answer most of them give."""
    RANDOM = 4
    """Drawn with the task's seed."""


class Placement(IntEnum):
    """Where the hint stands."""

    USER = 1
    """The last line of the user's turn: the paper's template."""
    ASSISTANT = 2
    """After the generation prompt, before the response: the reference code."""
    SYSTEM = 3
    """The first system message."""


class Weights(IntEnum):
    """Whose weights measure."""

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
    """When evidence can matter at all; evidence that cannot is not computed."""

    ALWAYS = 1
    REWARD_SPREAD = 2
    """Groups in which all rewards are equal have zero advantage and skip the teacher."""


class FinishReason(IntEnum):
    """Why sampling ended."""

    STOP = 1
    LENGTH = 2
    """Cut at max_tokens: the last token is not an end of sequence."""


class Outcome(IntEnum):
    """What the verifier found. A timeout or a grader error is no verdict, and never a wrong answer."""

    CORRECT = 1
    WRONG = 2
    UNPARSED = 3
    """Finished, but holds no answer."""
    TRUNCATED = 4
    """Cut at max_tokens before an answer."""
    TIMEOUT = 5
    GRADER_ERROR = 6


class EvidenceReason(IntEnum):
    """Why a row was scored under the context it was."""

    ASKED = 1
    NO_REJECTED = 2
    NO_ANSWER = 3
    SAME_AS_ANSWER = 4
    ONLY_SELF = 5
    NO_CORRECT = 6
    NO_SOLUTION = 7
    TOO_FEW = 8
    """Fewer differing rejected answers than were asked for."""
