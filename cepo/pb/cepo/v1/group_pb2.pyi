from cepo.pb.cepo.v1 import policy_pb2 as _policy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FollowUp(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FOLLOW_UP_UNSPECIFIED: _ClassVar[FollowUp]
    FOLLOW_UP_CONTINUATION: _ClassVar[FollowUp]
    FOLLOW_UP_DEMONSTRATION: _ClassVar[FollowUp]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_CORRECT: _ClassVar[Outcome]
    OUTCOME_WRONG: _ClassVar[Outcome]
    OUTCOME_UNPARSED: _ClassVar[Outcome]
    OUTCOME_TRUNCATED: _ClassVar[Outcome]
    OUTCOME_TIMEOUT: _ClassVar[Outcome]
    OUTCOME_GRADER_ERROR: _ClassVar[Outcome]

class EvidenceReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVIDENCE_REASON_UNSPECIFIED: _ClassVar[EvidenceReason]
    EVIDENCE_REASON_ASKED: _ClassVar[EvidenceReason]
    EVIDENCE_REASON_NO_REJECTED: _ClassVar[EvidenceReason]
    EVIDENCE_REASON_NO_ANSWER: _ClassVar[EvidenceReason]
    EVIDENCE_REASON_SAME_AS_ANSWER: _ClassVar[EvidenceReason]
    EVIDENCE_REASON_ONLY_SELF: _ClassVar[EvidenceReason]
    EVIDENCE_REASON_NO_CORRECT: _ClassVar[EvidenceReason]
    EVIDENCE_REASON_NO_SOLUTION: _ClassVar[EvidenceReason]
    EVIDENCE_REASON_TOO_FEW: _ClassVar[EvidenceReason]
FOLLOW_UP_UNSPECIFIED: FollowUp
FOLLOW_UP_CONTINUATION: FollowUp
FOLLOW_UP_DEMONSTRATION: FollowUp
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_CORRECT: Outcome
OUTCOME_WRONG: Outcome
OUTCOME_UNPARSED: Outcome
OUTCOME_TRUNCATED: Outcome
OUTCOME_TIMEOUT: Outcome
OUTCOME_GRADER_ERROR: Outcome
EVIDENCE_REASON_UNSPECIFIED: EvidenceReason
EVIDENCE_REASON_ASKED: EvidenceReason
EVIDENCE_REASON_NO_REJECTED: EvidenceReason
EVIDENCE_REASON_NO_ANSWER: EvidenceReason
EVIDENCE_REASON_SAME_AS_ANSWER: EvidenceReason
EVIDENCE_REASON_ONLY_SELF: EvidenceReason
EVIDENCE_REASON_NO_CORRECT: EvidenceReason
EVIDENCE_REASON_NO_SOLUTION: EvidenceReason
EVIDENCE_REASON_TOO_FEW: EvidenceReason

class PromptTask(_message.Message):
    __slots__ = ("run", "step", "index", "purpose", "messages", "images", "reference_answer", "answer_kind", "hint", "samples", "sampling", "seed", "asks", "teach_when", "route", "policy", "teacher", "reference_solution", "placement", "prefix", "origin", "reward", "step_delimiter", "base_share", "environment")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_ANSWER_FIELD_NUMBER: _ClassVar[int]
    ANSWER_KIND_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    ASKS_FIELD_NUMBER: _ClassVar[int]
    TEACH_WHEN_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_SOLUTION_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    STEP_DELIMITER_FIELD_NUMBER: _ClassVar[int]
    BASE_SHARE_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    run: str
    step: int
    index: int
    purpose: _policy_pb2.Purpose
    messages: _containers.RepeatedCompositeFieldContainer[_policy_pb2.Message]
    images: _containers.RepeatedCompositeFieldContainer[_policy_pb2.ImageRef]
    reference_answer: str
    answer_kind: str
    hint: str
    samples: int
    sampling: _policy_pb2.Sampling
    seed: int
    asks: _containers.RepeatedCompositeFieldContainer[_policy_pb2.Ask]
    teach_when: _policy_pb2.TeachWhen
    route: _containers.RepeatedScalarFieldContainer[_policy_pb2.Stage]
    policy: _policy_pb2.PolicyRef
    teacher: _policy_pb2.PolicyRef
    reference_solution: str
    placement: _policy_pb2.Placement
    prefix: bytes
    origin: Origin
    reward: _policy_pb2.Reward
    step_delimiter: str
    base_share: float
    environment: Environment
    def __init__(self, run: _Optional[str] = ..., step: _Optional[int] = ..., index: _Optional[int] = ..., purpose: _Optional[_Union[_policy_pb2.Purpose, str]] = ..., messages: _Optional[_Iterable[_Union[_policy_pb2.Message, _Mapping]]] = ..., images: _Optional[_Iterable[_Union[_policy_pb2.ImageRef, _Mapping]]] = ..., reference_answer: _Optional[str] = ..., answer_kind: _Optional[str] = ..., hint: _Optional[str] = ..., samples: _Optional[int] = ..., sampling: _Optional[_Union[_policy_pb2.Sampling, _Mapping]] = ..., seed: _Optional[int] = ..., asks: _Optional[_Iterable[_Union[_policy_pb2.Ask, _Mapping]]] = ..., teach_when: _Optional[_Union[_policy_pb2.TeachWhen, str]] = ..., route: _Optional[_Iterable[_Union[_policy_pb2.Stage, str]]] = ..., policy: _Optional[_Union[_policy_pb2.PolicyRef, _Mapping]] = ..., teacher: _Optional[_Union[_policy_pb2.PolicyRef, _Mapping]] = ..., reference_solution: _Optional[str] = ..., placement: _Optional[_Union[_policy_pb2.Placement, str]] = ..., prefix: _Optional[bytes] = ..., origin: _Optional[_Union[Origin, _Mapping]] = ..., reward: _Optional[_Union[_policy_pb2.Reward, _Mapping]] = ..., step_delimiter: _Optional[str] = ..., base_share: _Optional[float] = ..., environment: _Optional[_Union[Environment, _Mapping]] = ...) -> None: ...

class Environment(_message.Message):
    __slots__ = ("name", "row", "max_turns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    MAX_TURNS_FIELD_NUMBER: _ClassVar[int]
    name: str
    row: str
    max_turns: int
    def __init__(self, name: _Optional[str] = ..., row: _Optional[str] = ..., max_turns: _Optional[int] = ...) -> None: ...

class Origin(_message.Message):
    __slots__ = ("kind", "index", "sample")
    KIND_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    kind: FollowUp
    index: int
    sample: int
    def __init__(self, kind: _Optional[_Union[FollowUp, str]] = ..., index: _Optional[int] = ..., sample: _Optional[int] = ...) -> None: ...

class Given(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Completion(_message.Message):
    __slots__ = ("token_ids", "logps", "text", "finish_reason", "step_ends", "given", "played")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STEP_ENDS_FIELD_NUMBER: _ClassVar[int]
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    PLAYED_FIELD_NUMBER: _ClassVar[int]
    token_ids: bytes
    logps: bytes
    text: str
    finish_reason: FinishReason
    step_ends: _containers.RepeatedScalarFieldContainer[int]
    given: _containers.RepeatedCompositeFieldContainer[Given]
    played: Played
    def __init__(self, token_ids: _Optional[bytes] = ..., logps: _Optional[bytes] = ..., text: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., step_ends: _Optional[_Iterable[int]] = ..., given: _Optional[_Iterable[_Union[Given, _Mapping]]] = ..., played: _Optional[_Union[Played, _Mapping]] = ...) -> None: ...

class Played(_message.Message):
    __slots__ = ("turns", "reward", "failure", "timed_out")
    TURNS_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    TIMED_OUT_FIELD_NUMBER: _ClassVar[int]
    turns: int
    reward: float
    failure: str
    timed_out: bool
    def __init__(self, turns: _Optional[int] = ..., reward: _Optional[float] = ..., failure: _Optional[str] = ..., timed_out: _Optional[bool] = ...) -> None: ...

class PolicyProof(_message.Message):
    __slots__ = ("policy", "bound_modules", "canary_logp", "tokenizer_sha256", "engine", "first_token_at", "canary_logps")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    BOUND_MODULES_FIELD_NUMBER: _ClassVar[int]
    CANARY_LOGP_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_AT_FIELD_NUMBER: _ClassVar[int]
    CANARY_LOGPS_FIELD_NUMBER: _ClassVar[int]
    policy: _policy_pb2.PolicyRef
    bound_modules: int
    canary_logp: float
    tokenizer_sha256: str
    engine: str
    first_token_at: float
    canary_logps: bytes
    def __init__(self, policy: _Optional[_Union[_policy_pb2.PolicyRef, _Mapping]] = ..., bound_modules: _Optional[int] = ..., canary_logp: _Optional[float] = ..., tokenizer_sha256: _Optional[str] = ..., engine: _Optional[str] = ..., first_token_at: _Optional[float] = ..., canary_logps: _Optional[bytes] = ...) -> None: ...

class RolloutGroup(_message.Message):
    __slots__ = ("task", "prompt_token_ids", "completions", "proof")
    TASK_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    task: PromptTask
    prompt_token_ids: bytes
    completions: _containers.RepeatedCompositeFieldContainer[Completion]
    proof: PolicyProof
    def __init__(self, task: _Optional[_Union[PromptTask, _Mapping]] = ..., prompt_token_ids: _Optional[bytes] = ..., completions: _Optional[_Iterable[_Union[Completion, _Mapping]]] = ..., proof: _Optional[_Union[PolicyProof, _Mapping]] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("outcome", "reward", "accuracy", "extracted", "normalised", "reason", "format", "penalty", "functions", "environment", "step_rewards")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    EXTRACTED_FIELD_NUMBER: _ClassVar[int]
    NORMALISED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    PENALTY_FIELD_NUMBER: _ClassVar[int]
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    STEP_REWARDS_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    reward: float
    accuracy: float
    extracted: str
    normalised: str
    reason: str
    format: float
    penalty: float
    functions: float
    environment: float
    step_rewards: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, outcome: _Optional[_Union[Outcome, str]] = ..., reward: _Optional[float] = ..., accuracy: _Optional[float] = ..., extracted: _Optional[str] = ..., normalised: _Optional[str] = ..., reason: _Optional[str] = ..., format: _Optional[float] = ..., penalty: _Optional[float] = ..., functions: _Optional[float] = ..., environment: _Optional[float] = ..., step_rewards: _Optional[_Iterable[float]] = ...) -> None: ...

class ScoredGroup(_message.Message):
    __slots__ = ("rollout", "verdicts")
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    rollout: RolloutGroup
    verdicts: _containers.RepeatedCompositeFieldContainer[Verdict]
    def __init__(self, rollout: _Optional[_Union[RolloutGroup, _Mapping]] = ..., verdicts: _Optional[_Iterable[_Union[Verdict, _Mapping]]] = ...) -> None: ...

class EvidenceRow(_message.Message):
    __slots__ = ("logps", "applicable", "context", "reason", "answer", "source", "pooled", "hint_tokens", "top_ids", "top_logps")
    LOGPS_FIELD_NUMBER: _ClassVar[int]
    APPLICABLE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    POOLED_FIELD_NUMBER: _ClassVar[int]
    HINT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPS_FIELD_NUMBER: _ClassVar[int]
    logps: bytes
    applicable: bool
    context: _policy_pb2.ContextName
    reason: EvidenceReason
    answer: str
    source: int
    pooled: bytes
    hint_tokens: int
    top_ids: bytes
    top_logps: bytes
    def __init__(self, logps: _Optional[bytes] = ..., applicable: _Optional[bool] = ..., context: _Optional[_Union[_policy_pb2.ContextName, str]] = ..., reason: _Optional[_Union[EvidenceReason, str]] = ..., answer: _Optional[str] = ..., source: _Optional[int] = ..., pooled: _Optional[bytes] = ..., hint_tokens: _Optional[int] = ..., top_ids: _Optional[bytes] = ..., top_logps: _Optional[bytes] = ...) -> None: ...

class Evidence(_message.Message):
    __slots__ = ("ask", "rows")
    ASK_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ask: _policy_pb2.Ask
    rows: _containers.RepeatedCompositeFieldContainer[EvidenceRow]
    def __init__(self, ask: _Optional[_Union[_policy_pb2.Ask, _Mapping]] = ..., rows: _Optional[_Iterable[_Union[EvidenceRow, _Mapping]]] = ...) -> None: ...

class EvidencedGroup(_message.Message):
    __slots__ = ("scored", "evidence", "proofs", "seconds")
    SCORED_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    PROOFS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    scored: ScoredGroup
    evidence: _containers.RepeatedCompositeFieldContainer[Evidence]
    proofs: _containers.RepeatedCompositeFieldContainer[PolicyProof]
    seconds: float
    def __init__(self, scored: _Optional[_Union[ScoredGroup, _Mapping]] = ..., evidence: _Optional[_Iterable[_Union[Evidence, _Mapping]]] = ..., proofs: _Optional[_Iterable[_Union[PolicyProof, _Mapping]]] = ..., seconds: _Optional[float] = ...) -> None: ...

class GroupFailed(_message.Message):
    __slots__ = ("task", "stage", "error", "deliveries")
    TASK_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DELIVERIES_FIELD_NUMBER: _ClassVar[int]
    task: PromptTask
    stage: _policy_pb2.Stage
    error: str
    deliveries: int
    def __init__(self, task: _Optional[_Union[PromptTask, _Mapping]] = ..., stage: _Optional[_Union[_policy_pb2.Stage, str]] = ..., error: _Optional[str] = ..., deliveries: _Optional[int] = ...) -> None: ...
