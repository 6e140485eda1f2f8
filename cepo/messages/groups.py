"""The messages of a run: frozen pydantic models with the fields of proto/cepo/v1 and the invariants between them.

Each stage adds a layer that contains the message before it, so a stage cannot receive a half-filled message:
PromptTask -> RolloutGroup -> ScoredGroup -> EvidencedGroup. A `GroupFailed` takes the place of a group that was given
up. The state of a group is the stream that its message is in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from typing import Annotated, Self

from pydantic import Field, model_validator

from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.environments import Environment as Environment, Played as Played
from cepo.messages.reward import Reward as Reward
from cepo.messages.spans import Given as Given, check_given, check_unmeasured, given_tokens, sampled_mask
from cepo.messages.tasks import (
    BASE_POLICY as BASE_POLICY,
    MAX_INT64 as MAX_INT64,
    Ask as Ask,
    ImageRef as ImageRef,
    Message as Message,
    Origin as Origin,
    PolicyRef as PolicyRef,
    PolicyRequest as PolicyRequest,
    PromptTask as PromptTask,
    Sampling as Sampling,
    SessionTerms as SessionTerms,
)
from cepo.messages.vocabulary import (
    CORRECT_FROM,
    ContextName as ContextName,
    Contract as Contract,
    EvidenceReason as EvidenceReason,
    Feedback as Feedback,
    FinishReason as FinishReason,
    FollowUp as FollowUp,
    Outcome as Outcome,
    Pick as Pick,
    Placement as Placement,
    Purpose as Purpose,
    Stage as Stage,
    TeachWhen as TeachWhen,
    Want as Want,
    Weights as Weights,
)


class Completion(Contract):
    """One response of T tokens: the task's prefix, then tokens that were sampled, with given tokens in between."""

    token_ids: Int32Array
    """T ids, with the end-of-sequence token of each turn that has one."""
    logps: Float32Array
    """Log-probs of the sampled tokens, as the engine reports them, and 0 at given tokens: T less the length of the
    prefix. -inf is a probability of 0. Empty for a response that came without them from outside the run, such as the
    given answer of a pair."""
    text: str
    """The text of the sampled tokens; a line break stands for the given tokens between two turns."""
    finish_reason: FinishReason
    step_ends: tuple[int, ...] = ()
    """Where the reasoning steps end, in tokens, if the task has a step delimiter: `(3, 7, T)` are three steps."""
    given: tuple[Given, ...] = ()
    """The tokens that were not sampled, such as tool results and user turns; empty for a response of one turn."""
    played: Played | None = None
    """What the task's environment made of it; None without an environment."""

    @property
    def length(self) -> int:
        """The number of tokens that the policy sampled: T less the given tokens. Rewards, metrics and losses count it
        as the length of the response."""
        return len(self.token_ids) - given_tokens(self.given)

    @property
    def sampled_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that the policy sampled."""
        return tuple(compress(self.token_ids, sampled_mask(self.given, len(self.token_ids))))

    @model_validator(mode="after")
    def _steps_ascend_to_the_end(self) -> Self:
        tokens = len(self.token_ids)
        if self.step_ends and [*sorted(self.step_ends)[:-1], tokens] != list(self.step_ends):
            raise ValueError(f"steps that end at {list(self.step_ends)} in a response of {tokens} tokens")
        return self

    @model_validator(mode="after")
    def _logps_are_log_probs(self) -> Self:
        _check_logps(self.logps, "the sampled tokens")
        return self

    @model_validator(mode="after")
    def _given_tokens_have_no_log_prob(self) -> Self:
        check_given(self.given, len(self.token_ids))
        check_unmeasured(self.given, self.logps, len(self.token_ids))
        return self


class PolicyProof(Contract):
    """Evidence of the weights that an engine used, which the trainer checks."""

    policy: PolicyRef
    bound_modules: int = Field(ge=0)
    """Number of modules that took LoRA weights."""
    canary_logp: float
    """Sum of the log-probs of the canary's first tokens, which trainers of an earlier version compare."""
    tokenizer_sha256: str
    engine: str
    first_token_at: float = 0.0
    """Unix time in seconds at which the engine produced the first token with this policy."""
    canary_logps: Float32Array = Float32Array()
    """Log-probs of the scored tokens of a fixed sequence, at temperature 1 (`cepo.prompts.canary`)."""


class RolloutGroup(Contract):
    """From rollout to verify: the prompt's token ids and the completions of one policy, `task.samples` of them."""

    task: PromptTask
    prompt_token_ids: Annotated[Int32Array, Field(min_length=1)]
    completions: tuple[Completion, ...]
    proof: PolicyProof

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if len(self.completions) != self.task.samples:
            raise ValueError(f"{len(self.completions)} completions for {self.task.samples} samples")
        prefix = len(self.task.prefix)
        for completion in self.completions:
            if prefix and completion.token_ids[:prefix] != self.task.prefix:
                raise ValueError(f"a completion does not start with the task's prefix of {prefix} tokens")
            if completion.given and completion.given[0].start < prefix:
                raise ValueError(f"a completion has given tokens within the task's prefix of {prefix} tokens")
            tokens = len(completion.token_ids) - prefix
            if len(completion.logps) not in ((tokens,) if Stage.ROLLOUT in self.task.route else (0, tokens)):
                raise ValueError(f"{tokens} sampled token ids but {len(completion.logps)} log-probs")
        if self.proof.policy != self.task.policy:
            raise ValueError(f"sampled by {self.proof.policy.name}, the task names {self.task.policy.name}")
        return self


class Verdict(Contract):
    """The verifier's result for one completion."""

    outcome: Outcome
    reward: Annotated[float, Field(allow_inf_nan=False)]
    """0 if the verdict failed; it must not be read in that case."""
    accuracy: float = Field(ge=0, le=1)
    extracted: str = ""
    normalised: str = ""
    reason: str = ""
    format: float = 0.0
    """1 if the response marks its answer, otherwise 0."""
    penalty: float = Field(default=0.0, allow_inf_nan=False)
    """Sum of the overlong, length and repetition penalties, which the reward includes."""
    functions: float = Field(default=0.0, allow_inf_nan=False)
    """Sum of the values of the reward functions, which the reward includes."""
    environment: float = Field(default=0.0, allow_inf_nan=False)
    """The environment's reward times its weight, which the reward includes."""
    step_rewards: tuple[float, ...] = ()
    """The scorer's value for each reasoning step, if the task names a scorer; empty for an empty response."""

    @model_validator(mode="after")
    def _steps_are_numbers(self) -> Self:
        if not all(map(math.isfinite, self.step_rewards)):
            raise ValueError(f"step_rewards={list(self.step_rewards)} are not all finite")
        return self

    @property
    def correct(self) -> bool:
        """Whether the response is correct; False if there is no verdict."""
        return self.accuracy >= CORRECT_FROM and not self.failed

    @property
    def failed(self) -> bool:
        """Whether the verifier could not decide; a failed sample is left out of every statistic."""
        return self.outcome in (Outcome.TIMEOUT, Outcome.GRADER_ERROR)


class ScoredGroup(Contract):
    """From verify to teach: one verdict for each completion."""

    rollout: RolloutGroup
    verdicts: tuple[Verdict, ...]

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.verdicts) != len(self.rollout.completions):
            raise ValueError(f"{len(self.verdicts)} verdicts for {len(self.rollout.completions)} completions")
        for verdict, completion in zip(self.verdicts, self.rollout.completions, strict=True):
            if verdict.step_rewards and len(verdict.step_rewards) != len(completion.step_ends):
                raise ValueError(f"{len(verdict.step_rewards)} step rewards for {len(completion.step_ends)} steps")
        return self

    @property
    def task(self) -> PromptTask:
        return self.rollout.task

    @property
    def reward_spread(self) -> bool:
        """Whether the rewards of the group differ."""
        return len({verdict.reward for verdict in self.verdicts if not verdict.failed}) > 1


class EvidenceRow(Contract):
    """What the teacher measured of one response of T tokens under one context."""

    logps: Float32Array
    """T log-probs of the response's tokens, of logits over the rollout temperature, and 0 at given tokens; empty if not
    applicable."""
    applicable: bool
    context: ContextName
    reason: EvidenceReason
    answer: str = ""
    """The text of the hint; empty if the hint is tokens of the response of `source`."""
    source: int = -1
    """Index of the completion that the hint is taken from; -1: none."""
    pooled: Float32Array = Float32Array()
    """The mean last hidden state over the sampled tokens, if the ask wants `HIDDEN`."""
    hint_tokens: int = Field(default=0, ge=0)
    """Number of tokens by which the context is longer than the plain one."""
    top_ids: Int32Array = Int32Array()
    """T x k ids of the likeliest tokens, position after position, if the ask wants `DISTRIBUTION`; 0 at given
    tokens."""
    top_logps: Float32Array = Float32Array()
    """T x k log-probs of `top_ids`."""

    @model_validator(mode="after")
    def _distributions_are_whole(self) -> Self:
        ids, logps, positions = len(self.top_ids), len(self.top_logps), len(self.logps)
        if ids != logps or ids % (positions or math.inf):  # without positions there are no tokens
            raise ValueError(f"{ids} likeliest tokens with {logps} log-probs at {positions} positions")
        _check_logps(self.top_logps, "the likeliest tokens")
        if not self.pooled.finite:
            raise ValueError("the mean hidden state is not finite: the model that measured is broken")
        return self


class Evidence(Contract):
    """The measurements for one ask: a row for each completion."""

    ask: Ask
    rows: tuple[EvidenceRow, ...]


class EvidencedGroup(Contract):
    """From teach to ready: the evidence for every ask; empty if the group skipped the teacher."""

    scored: ScoredGroup
    evidence: tuple[Evidence, ...] = ()
    proofs: tuple[PolicyProof, ...] = ()
    """One for each policy that scored the group."""
    seconds: float = Field(default=0.0, ge=0)
    """Seconds of scoring, without waiting."""

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        completions = self.scored.rollout.completions
        lengths = [len(c.token_ids) for c in completions]
        for evidence in self.evidence:
            measured = [len(row.logps) for row in evidence.rows]
            wanted = [n if row.applicable else 0 for n, row in zip(lengths, evidence.rows, strict=True)]
            if measured != wanted:
                raise ValueError(f"{evidence.ask.context.name} has log-probs of lengths {measured}, responses {wanted}")
            for completion, row in zip(completions, evidence.rows, strict=True):
                check_unmeasured(completion.given, row.logps, len(completion.token_ids))
        allowed = {self.task.policy_of(weights) for weights in Weights}
        if strangers := [proof.policy.name for proof in self.proofs if proof.policy not in allowed]:
            raise ValueError(f"scored by {strangers[0]}, a policy that the task does not name")
        return self

    @property
    def task(self) -> PromptTask:
        return self.scored.rollout.task


class GroupFailed(Contract):
    """From any stage to ready: a group that was given up, so that the step can finish."""

    task: PromptTask
    stage: Stage
    error: str
    deliveries: int = Field(ge=0)


def _check_logps(logps: Sequence[float], tokens: str) -> None:
    """Refuses NaN and +inf, which alone make a sum that is NaN or +inf."""
    if isinstance(logps, Float32Array) and logps.finite:  # most are, and the sum takes longer
        return
    total = sum(logps)
    if math.isnan(total) or total == math.inf:
        raise ValueError(f"a log-prob of {tokens} is not a number below infinity: the model that measured is broken")


StageMessage = PromptTask | RolloutGroup | ScoredGroup | EvidencedGroup | GroupFailed
