from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_ROLLOUT: _ClassVar[Stage]
    STAGE_VERIFY: _ClassVar[Stage]
    STAGE_TEACH: _ClassVar[Stage]

class Purpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PURPOSE_UNSPECIFIED: _ClassVar[Purpose]
    PURPOSE_TRAIN: _ClassVar[Purpose]
    PURPOSE_EVAL: _ClassVar[Purpose]

class ContextName(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTEXT_NAME_UNSPECIFIED: _ClassVar[ContextName]
    CONTEXT_NAME_PLAIN: _ClassVar[ContextName]
    CONTEXT_NAME_ANSWER: _ClassVar[ContextName]
    CONTEXT_NAME_REJECTED: _ClassVar[ContextName]

class Feedback(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEEDBACK_UNSPECIFIED: _ClassVar[Feedback]
    FEEDBACK_ANSWER: _ClassVar[Feedback]
    FEEDBACK_SOLUTION: _ClassVar[Feedback]
    FEEDBACK_PEER_ANSWER: _ClassVar[Feedback]
    FEEDBACK_PEER_FULL: _ClassVar[Feedback]
    FEEDBACK_PEER_PREFIX: _ClassVar[Feedback]
    FEEDBACK_PEER_SUFFIX: _ClassVar[Feedback]

class Pick(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PICK_UNSPECIFIED: _ClassVar[Pick]
    PICK_REWARD: _ClassVar[Pick]
    PICK_SHORTEST: _ClassVar[Pick]
    PICK_MOST_COMMON: _ClassVar[Pick]
    PICK_RANDOM: _ClassVar[Pick]
    PICK_OWN: _ClassVar[Pick]

class Placement(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PLACEMENT_UNSPECIFIED: _ClassVar[Placement]
    PLACEMENT_USER: _ClassVar[Placement]
    PLACEMENT_ASSISTANT: _ClassVar[Placement]
    PLACEMENT_SYSTEM: _ClassVar[Placement]

class Weights(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEIGHTS_UNSPECIFIED: _ClassVar[Weights]
    WEIGHTS_TEACHER: _ClassVar[Weights]
    WEIGHTS_REFERENCE: _ClassVar[Weights]
    WEIGHTS_POLICY: _ClassVar[Weights]

class Want(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WANT_UNSPECIFIED: _ClassVar[Want]
    WANT_LOGPROBS: _ClassVar[Want]
    WANT_DISTRIBUTION: _ClassVar[Want]
    WANT_HIDDEN: _ClassVar[Want]

class TeachWhen(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TEACH_WHEN_UNSPECIFIED: _ClassVar[TeachWhen]
    TEACH_WHEN_ALWAYS: _ClassVar[TeachWhen]
    TEACH_WHEN_REWARD_SPREAD: _ClassVar[TeachWhen]
STAGE_UNSPECIFIED: Stage
STAGE_ROLLOUT: Stage
STAGE_VERIFY: Stage
STAGE_TEACH: Stage
PURPOSE_UNSPECIFIED: Purpose
PURPOSE_TRAIN: Purpose
PURPOSE_EVAL: Purpose
CONTEXT_NAME_UNSPECIFIED: ContextName
CONTEXT_NAME_PLAIN: ContextName
CONTEXT_NAME_ANSWER: ContextName
CONTEXT_NAME_REJECTED: ContextName
FEEDBACK_UNSPECIFIED: Feedback
FEEDBACK_ANSWER: Feedback
FEEDBACK_SOLUTION: Feedback
FEEDBACK_PEER_ANSWER: Feedback
FEEDBACK_PEER_FULL: Feedback
FEEDBACK_PEER_PREFIX: Feedback
FEEDBACK_PEER_SUFFIX: Feedback
PICK_UNSPECIFIED: Pick
PICK_REWARD: Pick
PICK_SHORTEST: Pick
PICK_MOST_COMMON: Pick
PICK_RANDOM: Pick
PICK_OWN: Pick
PLACEMENT_UNSPECIFIED: Placement
PLACEMENT_USER: Placement
PLACEMENT_ASSISTANT: Placement
PLACEMENT_SYSTEM: Placement
WEIGHTS_UNSPECIFIED: Weights
WEIGHTS_TEACHER: Weights
WEIGHTS_REFERENCE: Weights
WEIGHTS_POLICY: Weights
WANT_UNSPECIFIED: Want
WANT_LOGPROBS: Want
WANT_DISTRIBUTION: Want
WANT_HIDDEN: Want
TEACH_WHEN_UNSPECIFIED: TeachWhen
TEACH_WHEN_ALWAYS: TeachWhen
TEACH_WHEN_REWARD_SPREAD: TeachWhen

class PolicyRef(_message.Message):
    __slots__ = ("version", "sha256")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    version: int
    sha256: str
    def __init__(self, version: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class PolicyRequest(_message.Message):
    __slots__ = ("version", "sha256", "port", "service", "machine", "failed")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    version: int
    sha256: str
    port: int
    service: str
    machine: str
    failed: str
    def __init__(self, version: _Optional[int] = ..., sha256: _Optional[str] = ..., port: _Optional[int] = ..., service: _Optional[str] = ..., machine: _Optional[str] = ..., failed: _Optional[str] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("context", "want", "otherwise", "exclude_self", "weights", "feedback", "tokens", "pick", "rank", "top", "support", "as_published", "without_images")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    OTHERWISE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_SELF_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PICK_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    SUPPORT_FIELD_NUMBER: _ClassVar[int]
    AS_PUBLISHED_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_IMAGES_FIELD_NUMBER: _ClassVar[int]
    context: ContextName
    want: Want
    otherwise: ContextName
    exclude_self: bool
    weights: Weights
    feedback: Feedback
    tokens: int
    pick: Pick
    rank: int
    top: int
    support: Weights
    as_published: bool
    without_images: bool
    def __init__(self, context: _Optional[_Union[ContextName, str]] = ..., want: _Optional[_Union[Want, str]] = ..., otherwise: _Optional[_Union[ContextName, str]] = ..., exclude_self: _Optional[bool] = ..., weights: _Optional[_Union[Weights, str]] = ..., feedback: _Optional[_Union[Feedback, str]] = ..., tokens: _Optional[int] = ..., pick: _Optional[_Union[Pick, str]] = ..., rank: _Optional[int] = ..., top: _Optional[int] = ..., support: _Optional[_Union[Weights, str]] = ..., as_published: _Optional[bool] = ..., without_images: _Optional[bool] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "max_tokens", "presence_penalty")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    presence_penalty: float
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., max_tokens: _Optional[int] = ..., presence_penalty: _Optional[float] = ...) -> None: ...

class Reward(_message.Message):
    __slots__ = ("accuracy", "wrong", "format", "overlong_buffer", "overlong_factor", "length", "repetition", "repetition_ngram", "judge", "environment", "functions", "scorer")
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    WRONG_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    OVERLONG_BUFFER_FIELD_NUMBER: _ClassVar[int]
    OVERLONG_FACTOR_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    REPETITION_FIELD_NUMBER: _ClassVar[int]
    REPETITION_NGRAM_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    SCORER_FIELD_NUMBER: _ClassVar[int]
    accuracy: float
    wrong: float
    format: float
    overlong_buffer: int
    overlong_factor: float
    length: float
    repetition: float
    repetition_ngram: int
    judge: str
    environment: float
    functions: _containers.RepeatedScalarFieldContainer[str]
    scorer: str
    def __init__(self, accuracy: _Optional[float] = ..., wrong: _Optional[float] = ..., format: _Optional[float] = ..., overlong_buffer: _Optional[int] = ..., overlong_factor: _Optional[float] = ..., length: _Optional[float] = ..., repetition: _Optional[float] = ..., repetition_ngram: _Optional[int] = ..., judge: _Optional[str] = ..., environment: _Optional[float] = ..., functions: _Optional[_Iterable[str]] = ..., scorer: _Optional[str] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "content", "extra")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    EXTRA_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    extra: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ..., extra: _Optional[str] = ...) -> None: ...

class ImageRef(_message.Message):
    __slots__ = ("sha256", "media_type", "width", "height")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    media_type: str
    width: int
    height: int
    def __init__(self, sha256: _Optional[str] = ..., media_type: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class SessionTerms(_message.Message):
    __slots__ = ("policy", "sampling", "samples")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyRef
    sampling: Sampling
    samples: int
    def __init__(self, policy: _Optional[_Union[PolicyRef, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., samples: _Optional[int] = ...) -> None: ...
