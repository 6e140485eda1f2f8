"""Token credit for any response, by the evidence and the rule that training uses.

A request is one group: its responses are graded and contrasted as siblings. For each response and method,
`cepo.teaching.contexts` chooses the hints, the engine that scores training groups measures the response under them,
and `services.teacher.weighing` turns the log-probs into credit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cepo.credit import CreditReply, CreditRequest
from cepo.errors import Unreachable, UserError
from cepo.messages.groups import ContextName, EvidenceReason, Given, ImageRef, PolicyProof, PolicyRef, ScoredGroup
from cepo.prompts.renderer import Renderer
from cepo.prompts.spans import Span, response_text, spans
from cepo.teaching.contexts import Hint, hints
from cepo.teaching.handler import Logps, Pair, Scorer
from services.teacher.grading import Grader, completion, graded, needs_grading
from services.teacher.images import GivenImages, pictures
from services.teacher.prompts import Prompt, prompt_of, response_of
from services.teacher.weighing import Standing, rejected_ask, rule_of, standings, weighed

MAX_SCORED_TOKENS = 2**20
"""Most tokens scored for one request and policy; each context counts with each of its responses."""
POLICY_SECONDS = 30.0
"""How long a request waits for the trainer to send its policy. A run waits longer, for a trainer that restarts."""


@dataclass(frozen=True)
class _Group:
    """The parts of a request that depend neither on the policy nor on the method."""

    request: CreditRequest
    prompt: Prompt
    ids: list[tuple[int, ...]]
    texts: list[str]
    places: list[list[Span]]
    given: list[tuple[Given, ...]]
    """The tokens of each response that were given."""


@dataclass(frozen=True)
class _Variant:
    """A request with one method and one policy, and for each response its hint and its pair in each context."""

    request: CreditRequest
    hints: list[dict[ContextName, Hint]]
    pairs: list[dict[ContextName, Pair]]


class TokenCredit:
    """The function behind `POST /v1/credit` and `cepo credit`."""

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
            grader: grades responses without a reward and finds r-; without a grader such requests are rejected.
            images: the scorer's source of images, to which a request adds its own while it runs.
            policy_seconds: how long a request waits for its policy.
        """
        self._scorer = scorer
        self._renderer = renderer
        self._max_model_len = max_model_len
        self._grader = grader
        self._images = images
        self._policy_seconds = policy_seconds

    async def __call__(self, request: CreditRequest) -> CreditReply:
        """Returns the credit of every token.

        Raises:
            UserError: a field of the request is wrong; the message names it.
            PolicyError: the policy cannot be loaded.
            Unreachable: the verifier or the trainer does not answer.
        """
        images = await asyncio.to_thread(pictures, request.images)
        with self._images.held(dict(images)):
            group = self._read(request, tuple(ref for ref, _ in images))
            scored = await self._graded(group)
            variants = [self._variant(group, each, scored) for each in request.variants]
            standing = standings(request, scored)
            replies: dict[int, CreditReply] = {}
            for policy in dict.fromkeys(variant.request.policy for variant in variants):
                own = {at: variant for at, variant in enumerate(variants) if variant.request.policy == policy}
                proof, logps = await self._score(own.values(), request.temperature, policy)
                replies |= {at: _reply(group, variant, standing, proof, logps) for at, variant in own.items()}
        first, *others = (replies[at] for at in range(len(variants)))
        return first.model_copy(update={"compared": others})

    async def each(self, requests: Sequence[CreditRequest]) -> list[CreditReply]:
        """Returns the credit of each request; the requests run one after the other.

        Raises:
            UserError: a field of a request is wrong; the message names both.
            PolicyError, Unreachable: as for one request.
        """
        replies = []
        for at, request in enumerate(requests):
            try:
                replies.append(await self(request))
            except UserError as error:
                raise UserError(f"{at}.{error}") from error
        return replies

    def _read(self, request: CreditRequest, images: tuple[ImageRef, ...]) -> _Group:
        prompt = prompt_of(request, images, self._renderer)
        tokenizer = self._renderer.tokenizer
        ids, given = [], []
        for at, sent in enumerate(request.responses):
            row, spans_of_row = response_of(sent, at, prompt, self._renderer)
            self._require_room(at, row, prompt.plain, ContextName.PLAIN)
            ids.append(row)
            given.append(spans_of_row)
        texts = [
            response_text(tokenizer, row) if sent.text is None else sent.text
            for sent, row in zip(request.responses, ids, strict=True)
        ]
        places = [spans(tokenizer, row, text) for row, text in zip(ids, texts, strict=True)]
        return _Group(request, prompt, ids, texts, places, given)

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
            completion(
                self._renderer.text(ids, given),
                ids,
                given,
                ended=sent.text is not None or not stop.isdisjoint(ids[-1:]),
            )
            for ids, given, sent in zip(group.ids, group.given, request.responses, strict=True)
        ]
        proof = await self._loaded(request.policy)
        return await graded(request, group.prompt.messages, group.prompt.plain, completions, proof, self._grader)

    def _variant(self, group: _Group, request: CreditRequest, scored: ScoredGroup | None) -> _Variant:
        contexts = {("", ContextName.PLAIN): group.prompt.plain}

        def pair(at: int, hint: Hint) -> Pair:
            key = hint.answer, hint.context
            if key not in contexts:
                contexts[key] = group.prompt.hinted(hint.answer)
            self._require_room(at, group.ids[at], contexts[key], hint.context)
            return Pair(contexts[key], group.ids[at], group.prompt.images, given=group.given[at])

        chosen = _hints(request, scored)
        pairs = [{name: pair(at, hint) for name, hint in row.items()} for at, row in enumerate(chosen)]
        return _Variant(request, chosen, pairs)

    async def _score(
        self, variants: Iterable[_Variant], temperature: float, policy: PolicyRef
    ) -> tuple[PolicyProof, dict[Pair, Logps]]:
        """Log-probs of the distinct pairs of the variants of one policy."""
        pairs = list(dict.fromkeys(pair for variant in variants for row in variant.pairs for pair in row.values()))
        tokens = sum(len(pair.context_ids) + len(pair.response_ids) for pair in pairs)
        if tokens > MAX_SCORED_TOKENS:
            raise UserError(
                f"responses: {tokens} tokens to score under all contexts, more than {MAX_SCORED_TOKENS}; "
                "send fewer or shorter responses at once"
            )
        proof = await self._loaded(policy)
        scored = await self._scorer.score(pairs, temperature, policy)
        return proof, dict(zip(pairs, scored.values, strict=True))

    async def _loaded(self, policy: PolicyRef) -> PolicyProof:
        try:
            async with asyncio.timeout(self._policy_seconds):
                return await self._scorer.load(policy)
        except TimeoutError as error:
            raise Unreachable(
                f"policy: {policy.name} is not here, and no trainer has sent it for {self._policy_seconds:g} s; "
                "leave it out for the base model, or start the run"
            ) from error


def _hints(request: CreditRequest, scored: ScoredGroup | None) -> list[dict[ContextName, Hint]]:
    """The hint of each response in each context.

    The rejected context has the wrong answer that the request gives, or the hint that CEPO chooses from the graded
    group; it is absent if there is neither.
    """
    given = {
        ContextName.PLAIN: Hint(ContextName.PLAIN, "", EvidenceReason.ASKED),
        ContextName.ANSWER: Hint(ContextName.ANSWER, request.positive, EvidenceReason.ASKED),
    }
    if request.negative is not None:
        given[ContextName.REJECTED] = Hint(ContextName.REJECTED, request.negative, EvidenceReason.ASKED)
    if request.negative is not None or scored is None:
        return [given] * len(request.responses)
    return [given | {ContextName.REJECTED: hint} for hint in hints(rejected_ask(request.method), scored)]


def _reply(
    group: _Group,
    variant: _Variant,
    standing: Sequence[Standing],
    proof: PolicyProof,
    logps: Mapping[Pair, Logps],
) -> CreditReply:
    request, rule = variant.request, rule_of(variant.request.method, variant.request.dead_band)
    return CreditReply(
        responses=[
            weighed(
                group.texts[at],
                group.ids[at],
                group.places[at],
                group.given[at],
                standing[at],
                {name: logps[pair] for name, pair in pairs.items()},
                variant.hints[at].get(ContextName.REJECTED),
                rule,
            )
            for at, pairs in enumerate(variant.pairs)
        ],
        method=request.method.model_copy(update={"eps_w": rule.eps_w}),
        positive=request.positive,
        template=request.template,
        temperature=request.temperature,
        dead_band=request.dead_band,
        policy=request.policy,
        tokenizer_sha256=proof.tokenizer_sha256,
        engine=proof.engine,
        prompt_token_ids=list(group.prompt.plain),
    )
