"""Token credit for responses from anywhere, by the evidence and the rule that training uses.

One request is one group: its responses are graded and contrasted as siblings. The contexts are chosen by
`cepo.teaching.contexts`, scored by the engine that scores training groups, and weighed by `cepo.algo.core`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cepo.credit import CreditReply, CreditRequest, Method
from cepo.errors import Unreachable, UserError
from cepo.messages.groups import ContextName, ImageRef, PolicyProof, PolicyRef, ScoredGroup
from cepo.prompts.renderer import Renderer
from cepo.prompts.spans import Span, response_text, spans
from cepo.teaching.contexts import Hint
from cepo.teaching.handler import Logps, Pair, Scorer
from services.teacher.grading import Grader, completion, graded, needs_grading, negatives
from services.teacher.images import GivenImages, pictures
from services.teacher.prompts import Prompt, prompt_of, require_vocabulary, token_ids
from services.teacher.weighing import Evidence, Standing, standings, weighed

MAX_SCORED_TOKENS = 2**20
"""Tokens that one request may have scored, its contexts included."""
POLICY_SECONDS = 30.0
"""How long a request waits for the trainer to send its policy; a run waits longer for a trainer that restarts."""


@dataclass(frozen=True)
class _Group:
    """A request, read: everything that depends neither on the policy nor on the method."""

    request: CreditRequest
    prompt: Prompt
    ids: list[tuple[int, ...]]
    texts: list[str]
    places: list[list[Span]]


@dataclass(frozen=True)
class _Plan:
    """What one response is scored under."""

    plain: Pair
    positive: Pair
    negative: Pair | None
    hint: Hint | None

    @property
    def pairs(self) -> list[Pair]:
        return [pair for pair in (self.plain, self.positive, self.negative) if pair is not None]

    def evidence(self, scored: Mapping[Pair, Logps]) -> Evidence:
        """The log-probs that were found."""
        negative = scored[self.negative] if self.negative is not None else None
        return Evidence(scored[self.plain], scored[self.positive], negative, self.hint)


class TokenCredit:
    """The function behind REST and the command line."""

    def __init__(
        self,
        scorer: Scorer,
        renderer: Renderer,
        max_model_len: int,
        grader: Grader | None,
        images: GivenImages,
        *,
        policy_seconds: float = POLICY_SECONDS,
    ) -> None:
        """Makes the function.

        Args:
            grader: asked only for what a request leaves out; None: such requests are refused.
            images: where the scorer reads images; it is lent those of a request.
            policy_seconds: how long a policy is waited for.
        """
        self._scorer = scorer
        self._renderer = renderer
        self._max_model_len = max_model_len
        self._grader = grader
        self._images = images
        self._policy_seconds = policy_seconds

    async def __call__(self, request: CreditRequest) -> CreditReply:
        """Every token's credit.

        Raises:
            UserError: names the field that is wrong.
            PolicyError: the policy is not to be had.
            Unreachable: the verifier or the trainer does not answer.
        """
        found = await asyncio.to_thread(pictures, request.images)
        with self._images.held(dict(found)):
            return await self._credited(self._read(request, tuple(image for image, _ in found)))

    async def each(self, requests: Sequence[CreditRequest]) -> list[CreditReply]:
        """The credit of a list of requests, one after the other.

        Raises:
            UserError: names the request and the field.
            PolicyError, Unreachable: as for one.
        """
        replies = []
        for at, request in enumerate(requests):
            try:
                replies.append(await self(request))
            except UserError as error:
                raise UserError(f"{at}.{error}") from error
        return replies

    async def _credited(self, group: _Group) -> CreditReply:
        request = group.request
        scored = await self._graded(group)
        standing = standings(request, scored)
        variants = request.variants
        plans = [self._plans(group, variant.method, scored) for variant in variants]
        found = {}
        for policy in dict.fromkeys(variant.policy for variant in variants):
            same = [part for part, variant in zip(plans, variants, strict=True) if variant.policy == policy]
            pairs = list(dict.fromkeys(pair for part in same for plan in part for pair in plan.pairs))
            found[policy] = await self._score(pairs, request.temperature, policy)
        first, *others = (
            self._reply(group, variant, standing, part, *found[variant.policy])
            for variant, part in zip(variants, plans, strict=True)
        )
        return first.model_copy(update={"compared": others})

    def _read(self, request: CreditRequest, images: tuple[ImageRef, ...]) -> _Group:
        prompt = prompt_of(request, images, self._renderer)
        tokenizer = self._renderer.tokenizer
        ids = []
        for at, sent in enumerate(request.responses):
            if sent.text is not None:
                ids.append(token_ids(sent.text, self._renderer))
            else:
                ids.append(require_vocabulary(sent.token_ids or (), self._renderer, f"responses.{at}.token_ids"))
            self._require_room(at, ids[at], prompt.plain, ContextName.PLAIN)
        texts = [
            response_text(tokenizer, row) if sent.text is None else sent.text
            for sent, row in zip(request.responses, ids, strict=True)
        ]
        places = [spans(tokenizer, row, text) for row, text in zip(ids, texts, strict=True)]
        return _Group(request, prompt, ids, texts, places)

    def _require_room(self, at: int, ids: Sequence[int], prompt: Sequence[int], context: ContextName) -> None:
        if len(prompt) + len(ids) > self._max_model_len:
            raise UserError(
                f"responses.{at}: {len(ids)} tokens after a prompt of {len(prompt)} under {context.name} exceed the "
                f"teacher's context length of {self._max_model_len}"
            )

    async def _graded(self, group: _Group) -> ScoredGroup | None:
        request = group.request
        if not needs_grading(request, self._grader):
            return None
        assert self._grader is not None
        stop = self._renderer.stop_ids
        completions = [
            completion(self._renderer.text(ids), ids, ended=sent.text is not None or not stop.isdisjoint(ids[-1:]))
            for ids, sent in zip(group.ids, request.responses, strict=True)
        ]
        proof = await self._loaded(request.policy)
        return await graded(request, group.prompt.messages, group.prompt.plain, completions, proof, self._grader)

    def _plans(self, group: _Group, method: Method, scored: ScoredGroup | None) -> list[_Plan]:
        contexts = {(ContextName.PLAIN, ""): group.prompt.plain}

        def pair(at: int, context: ContextName, answer: str) -> Pair:
            if (context, answer) not in contexts:
                contexts[context, answer] = group.prompt.hinted(answer)
            prompt = contexts[context, answer]
            self._require_room(at, group.ids[at], prompt, context)
            return Pair(prompt, group.ids[at], group.prompt.images)

        return [
            _Plan(
                plain=pair(at, ContextName.PLAIN, ""),
                positive=pair(at, ContextName.ANSWER, group.request.positive),
                negative=pair(at, hint.context, hint.answer) if hint is not None else None,
                hint=hint,
            )
            for at, hint in enumerate(negatives(group.request, method, scored))
        ]

    async def _score(
        self, pairs: Sequence[Pair], temperature: float, policy: PolicyRef
    ) -> tuple[PolicyProof, dict[Pair, Logps]]:
        tokens = sum(len(pair.context_ids) + len(pair.response_ids) for pair in pairs)
        if tokens > MAX_SCORED_TOKENS:
            raise UserError(
                f"responses: {tokens} tokens to score under all contexts, more than {MAX_SCORED_TOKENS}; "
                "send fewer or shorter responses at once"
            )
        proof = await self._loaded(policy)
        return proof, dict(zip(pairs, await self._scorer.score(pairs, temperature, policy), strict=True))

    async def _loaded(self, policy: PolicyRef) -> PolicyProof:
        try:
            async with asyncio.timeout(self._policy_seconds):
                return await self._scorer.load(policy)
        except TimeoutError as error:
            raise Unreachable(
                f"policy: {policy.name} is not here, and no trainer has sent it for {self._policy_seconds:g} s; "
                "leave it out for the base model, or start the run"
            ) from error

    def _reply(
        self,
        group: _Group,
        request: CreditRequest,
        standing: Sequence[Standing],
        plans: Sequence[_Plan],
        proof: PolicyProof,
        scored: Mapping[Pair, Logps],
    ) -> CreditReply:
        rows = zip(group.texts, group.ids, group.places, standing, plans, strict=True)
        return CreditReply(
            responses=[
                weighed(text, ids, places, where, plan.evidence(scored), request.method)
                for text, ids, places, where, plan in rows
            ],
            method=request.method,
            positive=request.positive,
            template=request.template,
            temperature=request.temperature,
            policy=request.policy,
            tokenizer_sha256=proof.tokenizer_sha256,
            engine=proof.engine,
            prompt_token_ids=list(group.prompt.plain),
        )
