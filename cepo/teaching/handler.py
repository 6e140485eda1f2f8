"""Turns a scored group into an evidenced one: chooses the hints, renders the contexts, measures the sampled tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from cepo.errors import UserError
from cepo.messages.arrays import Float32Array
from cepo.messages.groups import (
    BASE_POLICY,
    Ask,
    ContextName,
    Evidence,
    EvidencedGroup,
    EvidenceRow,
    Given,
    ImageRef,
    PolicyRef,
    PromptTask,
    ScoredGroup,
    Want,
    Weights,
)
from cepo.messages.spans import given_tokens
from cepo.prompts.renderer import Renderer
from cepo.service.adapters import Engine
from cepo.service.metrics import SCORED_TOKENS
from cepo.teaching.contexts import Hint, hints

Logps = tuple[float, ...]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Pair:
    """One response under one context, as token ids."""

    context_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    images: tuple[ImageRef, ...] = ()
    """The images of the context, in the order of their placeholders."""
    base_share: float = 0.0
    """Share of the base model's logits in the mix; the rest are the logits of the scoring policy."""
    given: tuple[Given, ...] = ()
    """The tokens of the response that were not sampled. They are context; their measurements are 0."""


@dataclass(frozen=True)
class Likeliest:
    """k tokens at each of T positions, in the bytes of an evidence row.

    Example: T = 2 positions and k = 3 give 2 * 3 int32 ids and 2 * 3 float32 log-probs, 24 bytes each.
    """

    ids: bytes
    logps: bytes


@dataclass(frozen=True)
class Scored(Generic[Value]):
    """One value for each pair."""

    values: list[Value]
    seconds: float = 0.0
    """Time that the model worked for these pairs, without waiting; a pass shared by groups is split by tokens."""


class Scorer(Engine, Protocol):
    """An engine that measures given tokens with any policy; the same context may occur in several pairs."""

    async def score(self, pairs: Sequence[Pair], temperature: float, policy: PolicyRef) -> Scored[Logps]:
        """The log-prob of each response token, with logits divided by the temperature; 0 at given tokens."""
        ...

    async def likeliest(
        self, pairs: Sequence[Pair], k: int, temperature: float, policy: PolicyRef
    ) -> Scored[Likeliest]:
        """The k likeliest tokens at each response position, likeliest first; k = 0 means the whole vocabulary."""
        ...

    async def gather(
        self, pairs: Sequence[Pair], ids: Sequence[bytes], temperature: float, policy: PolicyRef
    ) -> Scored[Likeliest]:
        """The log-probs of given tokens: T x k ids for each pair, laid out as `likeliest` returns them."""
        ...

    async def pool(self, pairs: Sequence[Pair], policy: PolicyRef) -> Scored[tuple[float, ...]]:
        """The mean last hidden state over each response."""
        ...


def make_handler(
    scorer: Scorer, renderer: Renderer, max_model_len: int
) -> Callable[[ScoredGroup], Awaitable[EvidencedGroup]]:
    """Returns the function that the stage loop and the gRPC call run on each group."""

    async def measure(group: ScoredGroup) -> EvidencedGroup:
        task = group.task
        policies = dict.fromkeys(policy for ask in task.asks for policy in _policies(ask, task))
        proofs = tuple([await scorer.load(policy) for policy in policies])
        chosen = [hints(ask, group) for ask in task.asks]
        pairs = _pairs(group, chosen, renderer, max_model_len)
        logps, seconds = await _logps(task, pairs, scorer)
        evidence = []
        for a, (ask, row) in enumerate(zip(task.asks, chosen, strict=True)):
            own = {i: pair for (at, i), pair in pairs.items() if at == a}
            extra = await _extra(ask, group, list(own.values()), scorer)
            seconds += extra.seconds
            fields = {
                i: {"hint_tokens": _hint_tokens(group, pair)} | more
                for (i, pair), more in zip(own.items(), extra.values, strict=True)
            }
            rows = [_row(hint, logps.get((a, i), ()), fields.get(i, {})) for i, hint in enumerate(row)]
            evidence.append(Evidence(ask=ask, rows=tuple(rows)))
        return EvidencedGroup(scored=group, evidence=tuple(evidence), proofs=proofs, seconds=seconds)

    return measure


def _policies(ask: Ask, task: PromptTask) -> tuple[PolicyRef, ...]:
    """The policies whose weights an ask needs."""
    weights = (ask.weights, ask.support) if ask.want is Want.DISTRIBUTION else (ask.weights,)
    return (*map(task.policy_of, weights), *([BASE_POLICY] if _base_share(ask, task) else []))


def _base_share(ask: Ask, task: PromptTask) -> float:
    """The base model's share of the logits, for a teacher held near the base model."""
    return task.base_share if ask.weights is Weights.TEACHER else 0.0


async def _logps(
    task: PromptTask, pairs: Mapping[tuple[int, int], Pair], scorer: Scorer
) -> tuple[dict[tuple[int, int], Logps], float]:
    """Log-probs by (ask, completion), and the seconds they took; each policy scores its distinct pairs in one call."""
    logps: dict[tuple[PolicyRef, Pair], Logps] = {}
    seconds = 0.0
    policy_of = [task.policy_of(ask.weights) for ask in task.asks]
    for policy in dict.fromkeys(policy_of):
        distinct = list(dict.fromkeys(pair for (a, _), pair in pairs.items() if policy_of[a] == policy))
        scored = await scorer.score(distinct, task.sampling.temperature, policy)
        SCORED_TOKENS.inc(sum(len(pair.response_ids) - given_tokens(pair.given) for pair in distinct))
        logps |= {(policy, pair): row for pair, row in zip(distinct, scored.values, strict=True)}
        seconds += scored.seconds
    return {(a, i): logps[policy_of[a], pair] for (a, i), pair in pairs.items()}, seconds


async def _extra(ask: Ask, group: ScoredGroup, pairs: Sequence[Pair], scorer: Scorer) -> Scored[dict[str, Any]]:
    """The fields of an evidence row beyond the log-probs of the sampled tokens, for each pair."""
    task = group.task
    policy, temperature = task.policy_of(ask.weights), task.sampling.temperature
    if ask.want is Want.HIDDEN:
        pooled = await scorer.pool(pairs, policy)
        return Scored([{"pooled": vector} for vector in pooled.values], pooled.seconds)
    if ask.want is Want.DISTRIBUTION:
        if ask.support is ask.weights:
            top = await scorer.likeliest(pairs, ask.top, temperature, policy)
        else:
            prompt_ids = tuple(group.rollout.prompt_token_ids)
            plain = [Pair(prompt_ids, pair.response_ids, task.images, given=pair.given) for pair in pairs]
            support = await scorer.likeliest(plain, ask.top, temperature, task.policy_of(ask.support))
            top = await scorer.gather(pairs, [row.ids for row in support.values], temperature, policy)
            top = Scored(top.values, support.seconds + top.seconds)
        return Scored([{"top_ids": row.ids, "top_logps": row.logps} for row in top.values], top.seconds)
    return Scored([{} for _ in pairs])


def _pairs(
    group: ScoredGroup, chosen: Sequence[Sequence[Hint]], renderer: Renderer, max_model_len: int
) -> dict[tuple[int, int], Pair]:
    """The applicable pairs by (ask, completion); each distinct hint is rendered once."""
    task, contexts = group.task, dict[str | tuple[int, ...], tuple[int, ...]]()
    prompt_ids = tuple(group.rollout.prompt_token_ids)  # the exact ids that the rollout sampled from
    response_ids = [tuple(completion.token_ids) for completion in group.rollout.completions]
    pairs = {}
    for a, (ask, row) in enumerate(zip(task.asks, chosen, strict=True)):
        images = () if ask.without_images else task.images
        for i, hint in enumerate(row):
            if not hint.applicable:
                continue
            context = prompt_ids
            if hint.context is not ContextName.PLAIN:
                shown = hint.shown or hint.answer
                if shown not in contexts:
                    contexts[shown] = renderer.hinted_ids(task.messages, task.hint, shown, task.placement, task.images)
                context = contexts[shown]
            if task.images and not images:
                context = renderer.mask_images(context)
            if len(context) + len(response_ids[i]) > max_model_len:
                raise UserError(
                    f"context {hint.context.name} of {len(context)} tokens and a response of {len(response_ids[i])} "
                    f"exceed the context length {max_model_len} of the teacher"
                )
            given = group.rollout.completions[i].given
            pairs[a, i] = Pair(context, response_ids[i], images, _base_share(ask, task), given)
    return pairs


def _hint_tokens(group: ScoredGroup, pair: Pair) -> int:
    """The number of tokens that the hint adds to the prompt."""
    return max(0, len(pair.context_ids) - len(group.rollout.prompt_token_ids))


def _row(hint: Hint, logps: Logps, extra: Mapping[str, Any]) -> EvidenceRow:
    return EvidenceRow(
        logps=Float32Array.of(logps),
        applicable=hint.applicable,
        context=hint.context,
        reason=hint.reason,
        answer=hint.answer,
        source=hint.source,
        **extra,
    )
