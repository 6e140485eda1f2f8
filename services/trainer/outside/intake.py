"""Takes a group that was sampled elsewhere: checks it, gives it a place in a step, and publishes it.

The verifier grades it and the teacher scores it like any other group, unless it came with its rewards and log-probs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from cepo.answers.kinds import check_reference
from cepo.data.problems import Problem
from cepo.errors import PolicyError, Unreachable, UserError
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import (
    Completion,
    ContextName,
    FinishReason,
    Given,
    Outcome,
    Played,
    PolicyProof,
    PromptTask,
    Purpose,
    Reward,
    RolloutGroup,
    ScoredGroup,
    SessionTerms,
    Stage,
    Verdict,
)
from cepo.messages.spans import sampled_mask, sampled_spans
from cepo.messages.vocabulary import CORRECT_FROM
from cepo.prompts.renderer import Renderer
from cepo.prompts.turns import trajectory_of
from services.trainer.feeder import sampling_of
from services.trainer.learning.batch import SAMPLED
from services.trainer.outside.feeder import OutsideFeeder
from services.trainer.outside.inbox import Arrived
from services.trainer.outside.sent import SentGroup, SentResponse, TakenGroup
from services.trainer.pipeline import Pinned, Pipeline

AS_SENT = Reward(accuracy=0.0, environment=1.0)
"""The reward of a response is the one that came with it."""


class Intake:
    """The function behind `POST /v1/groups`."""

    def __init__(
        self, feeder: OutsideFeeder, renderer: Renderer, expect: Callable[[Sequence[PromptTask]], None]
    ) -> None:
        """Takes groups for the run of a feeder.

        Args:
            expect: announces a task whose group will be collected.
        """
        self._feeder = feeder
        self._renderer = renderer
        self._expect = expect

    async def take(self, sent: SentGroup) -> TakenGroup:
        """Takes a group. A group that was sent before is not taken twice.

        Raises:
            UserError: a field is wrong; the message names it.
            PolicyError: the policy is not one that the group's step may be trained on with.
            Unreachable: the run has not started.
        """
        arrivals, content = self._feeder.arrivals, sent.model_dump_json().encode()
        inbox = arrivals.inbox
        async with arrivals.changed:
            place = inbox.place_of(sent.id, content)
            if place is None:
                step, index = place = inbox.next_place
                pinned = self._pinned(sent.policy_version, step)
                group = await asyncio.to_thread(self._group, sent, step, index, pinned)
                await asyncio.to_thread(inbox.add, sent.id, content, group)
                self._expect([group.task])
                await self._feeder.publish([group.task])
                arrivals.changed.notify_all()
            return TakenGroup(id=sent.id, step=place[0], index=place[1], waiting_for=inbox.missing(place[0]))

    def terms(self) -> SessionTerms:
        """How the next group is to be sampled.

        Raises:
            PolicyError: the run has all its groups.
            Unreachable: the run has not started, or the policy of the next step is not published yet.
        """
        config, step = self._feeder.config, self._feeder.arrivals.inbox.next_place[0]
        pipeline, oldest = self._pipeline(step)
        policy = pipeline.newest.policy
        if policy.version < oldest:
            raise Unreachable(f"version {oldest} of the policy is not published yet; ask again in a moment")
        return SessionTerms(policy=policy, sampling=sampling_of(config, Purpose.TRAIN), samples=config.sampling.samples)

    def _pipeline(self, step: int) -> tuple[Pipeline, int]:
        """The steps in flight, and the oldest version that a step may train on."""
        pipeline, config = self._feeder.arrivals.pipeline, self._feeder.config
        if pipeline is None:
            raise Unreachable("the run has not started; send the group again in a moment")
        if step >= config.loop.steps:
            raise PolicyError(f"policy_version: the run has the groups of all its {config.loop.steps} steps")
        return pipeline, max(0, step - config.loop.lag)

    def _pinned(self, version: int, step: int) -> Pinned:
        """The policies of a group that was sampled with a version and will be trained on in a step."""
        config = self._feeder.config
        pipeline, oldest = self._pipeline(step)
        newest = pipeline.newest.policy.version
        for pinned in reversed(pipeline.pinned):
            if pinned.policy.version == version >= oldest:
                return pinned
        if version == oldest > newest:
            raise Unreachable(
                f"policy_version: version {version} is not published yet; send the group again in a moment"
            )
        wanted = f"version {oldest}, which is published when step {oldest - 1} ends" if oldest > newest else newest
        raise PolicyError(
            f"policy_version: version {version} is not one that step {step} may train on with "
            f"loop.lag={config.loop.lag}; sample with {wanted}"
        )

    def _group(self, sent: SentGroup, step: int, index: int, pinned: Pinned) -> Arrived:
        completions = tuple(self._completion(sent, at) for at in range(len(sent.responses)))
        task = self._task(sent, step, index, pinned, measured=all(c.logps or not c.length for c in completions))
        prompt_ids = self._prompt_ids(sent, max(len(completion.token_ids) for completion in completions))
        proof = PolicyProof(
            policy=task.policy,
            bound_modules=0,
            canary_logp=0.0,
            tokenizer_sha256=self._renderer.sha256,
            engine="outside: the responses were sent",
        )
        rollout = RolloutGroup(task=task, prompt_token_ids=prompt_ids, completions=completions, proof=proof)
        if Stage.VERIFY in task.route:
            return rollout
        return ScoredGroup(rollout=rollout, verdicts=tuple(map(_verdict, sent.responses)))

    def _task(self, sent: SentGroup, step: int, index: int, pinned: Pinned, *, measured: bool) -> PromptTask:
        """The task of a group.

        Args:
            measured: whether every response has its log-probs.
        """
        problem = Problem(messages=tuple(sent.messages), answer=sent.answer, row=index)
        task = self._feeder.task_for(problem, step, index, pinned)
        hinted = any(ask.context is not ContextName.PLAIN for ask in task.asks)
        if hinted and not sent.answer:
            name = self._feeder.config.algorithm.name
            raise UserError(f"answer: give the reference answer, which algorithm.name={name!r} shows the teacher")
        if sent.answer:
            try:
                check_reference(sent.answer, task.answer_kind)
            except UserError as error:
                raise UserError(f"answer: {error}") from error
        asks = task.asks if measured else tuple(dict.fromkeys((*task.asks, SAMPLED)))
        rewarded = sent.responses[0].reward is not None
        changes = {
            "samples": len(sent.responses),
            "asks": asks,
            "route": (*([Stage.VERIFY] if sent.answer else []), *([Stage.TEACH] if asks or not sent.answer else [])),
            "reward": AS_SENT if rewarded else task.reward,
        }
        return PromptTask(**dict(task) | changes)

    def _prompt_ids(self, sent: SentGroup, longest: int) -> Int32Array:
        ids, limit = sent.prompt_token_ids, self._feeder.config.model.max_length
        if ids is None:
            ids = list(self._renderer.prompt_ids(sent.messages))
        self._require_vocabulary(ids, "prompt_token_ids")
        if len(ids) + longest > limit:
            raise UserError(
                f"responses: a prompt of {len(ids)} tokens and {longest} more exceed model.max_length={limit}"
            )
        return Int32Array.of(ids)

    def _completion(self, sent: SentGroup, at: int) -> Completion:
        response, limit = sent.responses[at], self._feeder.config.sampling.max_tokens
        ids, given = self._tokens(sent, response, f"responses.{at}")
        if len(ids) > limit:
            raise UserError(f"responses.{at}: {len(ids)} tokens, above sampling.max_tokens={limit}")
        mask, logps = sampled_mask(given, len(ids)), response.logps or ()
        delimiter = self._feeder.config.algorithm.reasoning_delimiter
        return Completion(
            token_ids=Int32Array.of(ids),
            logps=Float32Array.of(
                logp if own and logp is not None else 0.0 for logp, own in zip(logps, mask, strict=False)
            ),
            text=self._renderer.text(ids, given),
            finish_reason=FinishReason.LENGTH if response.truncated else FinishReason.STOP,
            step_ends=self._renderer.step_ends(ids, delimiter, given) if delimiter else (),
            given=given,
            played=_played(response, given, len(ids)),
        )

    def _tokens(self, sent: SentGroup, response: SentResponse, where: str) -> tuple[list[int], tuple[Given, ...]]:
        if response.messages is None:
            ids = response.token_ids or []
            self._require_vocabulary(ids, f"{where}.token_ids")
            return ids, tuple(response.given)
        try:
            trajectory = trajectory_of(self._renderer, sent.messages, response.messages)
        except UserError as error:
            raise UserError(f"{where}.messages: {error}") from error
        return trajectory.token_ids, trajectory.given

    def _require_vocabulary(self, ids: Sequence[int], where: str) -> None:
        size = len(self._renderer.tokenizer)
        if strange := [(at, token) for at, token in enumerate(ids) if not 0 <= token < size]:
            at, token = strange[0]
            raise UserError(f"{where}.{at}: {token} is outside the vocabulary of {size} tokens")


def _played(response: SentResponse, given: Sequence[Given], tokens: int) -> Played | None:
    """The reward that came with a response, as that of an environment."""
    if response.reward is None:
        return None
    return Played(turns=len(sampled_spans(given, tokens)), reward=response.reward)


def _verdict(response: SentResponse) -> Verdict:
    """The verdict of a response that came with its reward and without a reference answer."""
    reward = response.reward or 0.0
    return Verdict(
        outcome=Outcome.CORRECT if reward >= CORRECT_FROM else Outcome.WRONG,
        reward=reward,
        accuracy=min(1.0, max(0.0, reward)),
        reason="the reward came with the response",
        environment=reward,
    )
