"""Verdicts on the responses of a credit request, from the verifier."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import grpc

from cepo.answers.kinds import check_reference
from cepo.credit import CreditRequest
from cepo.errors import Unreachable, UserError
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import (
    Completion,
    ContextName,
    FinishReason,
    Given,
    Message,
    PolicyProof,
    PromptTask,
    Purpose,
    RolloutGroup,
    Sampling,
    ScoredGroup,
    Stage,
)
from cepo.messages.wire import from_proto, to_proto
from cepo.net.auth import Tokens
from cepo.net.connections import channel
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2_grpc
from services.teacher.weighing import rule_of

Grader = Callable[[RolloutGroup], Awaitable[ScoredGroup]]
"""Returns a verdict for every response of a group."""
TIMEOUT_SECONDS = 120.0


def remote_verifier(settings: Settings) -> Grader:
    """Returns a grader that calls `VerifierService.Verify` at `settings.verifier_address`."""
    address, tokens = settings.verifier_address, Tokens.of(settings)

    async def verify(group: RolloutGroup) -> ScoredGroup:
        async with channel(address, settings) as verifier:
            stub = services_pb2_grpc.VerifierServiceStub(verifier)
            try:
                reply = await stub.Verify(to_proto(group), metadata=tokens.metadata(), timeout=TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    raise UserError(f"positive: {error.details()}") from error
                raise Unreachable(f"verifier at {address}: {error.code().name}: {error.details()}") from error
        return from_proto(ScoredGroup, reply)

    return verify


def needs_grading(request: CreditRequest, grader: Grader | None) -> bool:
    """Returns whether the verifier has to grade the responses, for their rewards or for the choice of r-.

    Raises:
        UserError: the responses have to be graded, and there is no grader.
    """
    unrewarded = [at for at, r in enumerate(request.responses) if r.reward is None and r.advantage is None]
    if grader is not None:
        return bool(unrewarded) or request.negative is None
    absent = "this teacher has no verifier (CEPO_VERIFIER_ADDRESS)"
    if unrewarded:
        raise UserError(f"responses.{unrewarded[0]}: give a reward or an advantage; {absent} to grade it")
    if request.negative is None and any(
        rule_of(variant.method).denominator is ContextName.REJECTED for variant in request.variants
    ):
        raise UserError(f"negative: give a wrong answer; {absent} to find one among the responses")
    return False


async def graded(
    request: CreditRequest,
    messages: Sequence[Message],
    prompt_ids: tuple[int, ...],
    completions: Sequence[Completion],
    proof: PolicyProof,
    grader: Grader,
) -> ScoredGroup:
    """Grades the responses as one group; a reward that the request gives replaces the reward of the verdict.

    Raises:
        UserError: responses cannot be graded against the positive answer.
        Unreachable: the verifier does not answer.
    """
    try:
        check_reference(request.positive, request.kind)
    except UserError as error:
        raise UserError(f"positive: {error}") from error
    task = PromptTask(
        run="credit",
        step=0,
        index=0,
        purpose=Purpose.TRAIN,
        messages=tuple(messages),
        reference_answer=request.positive,
        answer_kind=request.kind,
        hint=request.template,
        samples=len(completions),
        sampling=Sampling(temperature=request.temperature, max_tokens=1 + max(len(c.token_ids) for c in completions)),
        seed=0,
        route=(Stage.ROLLOUT, Stage.VERIFY),
        policy=request.policy,
    )
    rollout = RolloutGroup(
        task=task, prompt_token_ids=Int32Array.of(prompt_ids), completions=tuple(completions), proof=proof
    )
    scored = await grader(rollout)
    verdicts = tuple(
        verdict if sent.reward is None else verdict.model_copy(update={"reward": sent.reward})
        for verdict, sent in zip(scored.verdicts, request.responses, strict=True)
    )
    return ScoredGroup(rollout=rollout, verdicts=verdicts)


def completion(text: str, ids: tuple[int, ...], given: tuple[Given, ...], *, ended: bool) -> Completion:
    """Returns a response in the form that the grader takes; its log-probs are 0, because no engine sampled it."""
    reason = FinishReason.STOP if ended else FinishReason.LENGTH
    return Completion(
        token_ids=Int32Array.of(ids),
        logps=Float32Array.of([0.0] * len(ids)),
        text=text,
        finish_reason=reason,
        given=given,
    )
