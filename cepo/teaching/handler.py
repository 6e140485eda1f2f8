"""A scored group becomes an evidenced one: choose the hints, render the contexts, measure the sampled tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from cepo.errors import UserError
from cepo.messages.groups import (
    BASE_POLICY,
    Ask,
    ContextName,
    Evidence,
    EvidencedGroup,
    EvidenceReason,
    EvidenceRow,
    ImageRef,
    PolicyRef,
    PromptTask,
    ScoredGroup,
    Want,
    Weights,
)
from cepo.prompts.renderer import Renderer
from cepo.service.adapters import Engine
from cepo.service.metrics import SCORED_TOKENS
from cepo.teaching.contexts import Hint, hints

Logps = tuple[float, ...]

scoring_seconds: ContextVar[float] = ContextVar("scoring_seconds", default=0.0)
"""What a scorer has worked for the group in hand, without waiting for its turn; the scorer adds to it."""


@dataclass(frozen=True)
class Pair:
    """One response under one context, as token ids."""

    context_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    images: tuple[ImageRef, ...] = ()
    """Of the context, in the order of their placeholders."""
    base_share: float = 0.0
    """Share of the base model's logits; the rest are the policy's that scores."""


@dataclass(frozen=True)
class Likeliest:
    """k tokens at every one of T positions and their log-probs, in the bytes of an evidence row."""

    ids: bytes
    logps: bytes


class Scorer(Engine, Protocol):
    """An engine that measures given tokens with any policy it is asked for; contexts repeat across pairs."""

    async def score(self, pairs: Sequence[Pair], temperature: float, policy: PolicyRef) -> list[Logps]:
        """Log-probs of every response token, of logits over the temperature."""
        ...

    async def likeliest(self, pairs: Sequence[Pair], k: int, temperature: float, policy: PolicyRef) -> list[Likeliest]:
        """The k likeliest tokens at every response position, the likeliest first; k = 0: the whole vocabulary."""
        ...

    async def gather(
        self, pairs: Sequence[Pair], ids: Sequence[bytes], temperature: float, policy: PolicyRef
    ) -> list[Likeliest]:
        """The log-probs of given tokens: T x k ids for every pair, as `likeliest` gives them."""
        ...

    async def pool(self, pairs: Sequence[Pair], policy: PolicyRef) -> list[tuple[float, ...]]:
        """The mean last hidden state over every response."""
        ...


def make_handler(
    scorer: Scorer, renderer: Renderer, max_model_len: int
) -> Callable[[ScoredGroup], Awaitable[EvidencedGroup]]:
    """The teacher function behind the stage loop and the gRPC call."""

    async def measure(group: ScoredGroup) -> EvidencedGroup:
        scoring_seconds.set(0.0)
        task = group.task
        policies = dict.fromkeys(policy for ask in task.asks for policy in _policies(ask, task))
        proofs = tuple([await scorer.load(policy) for policy in policies])
        chosen = [hints(ask, group) for ask in task.asks]
        pairs = _pairs(group, chosen, renderer, max_model_len)
        logps = await _scores(task, pairs, scorer)
        evidence = []
        for a, (ask, row) in enumerate(zip(task.asks, chosen, strict=True)):
            own = {i: pair for (at, i), pair in pairs.items() if at == a}
            extra = await _extra(ask, group, own, scorer)
            more = {i: {"hint_tokens": _hint_tokens(group, pair)} | extra.get(i, {}) for i, pair in own.items()}
            rows = [_row(hint, logps.get((a, i), ()), more.get(i, {})) for i, hint in enumerate(row)]
            evidence.append(Evidence(ask=ask, rows=tuple(rows)))
        return EvidencedGroup(scored=group, evidence=tuple(evidence), proofs=proofs, seconds=scoring_seconds.get())

    return measure


def _policies(ask: Ask, task: PromptTask) -> tuple[PolicyRef, ...]:
    """Whose weights an ask needs."""
    weights = (ask.weights, ask.support) if ask.want is Want.DISTRIBUTION else (ask.weights,)
    return (*map(task.policy_of, weights), *([BASE_POLICY] if _base_share(ask, task) else []))


def _base_share(ask: Ask, task: PromptTask) -> float:
    return task.base_share if ask.weights is Weights.TEACHER else 0.0


async def _scores(
    task: PromptTask, pairs: Mapping[tuple[int, int], Pair], scorer: Scorer
) -> dict[tuple[int, int], Logps]:
    """Log-probs by (ask, completion): one pass for each policy, each pair once."""
    found: dict[tuple[PolicyRef, Pair], Logps] = {}
    policy_of = [task.policy_of(ask.weights) for ask in task.asks]
    for policy in dict.fromkeys(policy_of):
        wanted = list(dict.fromkeys(pair for (a, _), pair in pairs.items() if policy_of[a] == policy))
        scored = await scorer.score(wanted, task.sampling.temperature, policy)
        SCORED_TOKENS.inc(sum(len(pair.response_ids) for pair in wanted))
        found |= {(policy, pair): row for pair, row in zip(wanted, scored, strict=True)}
    return {(a, i): found[policy_of[a], pair] for (a, i), pair in pairs.items()}


async def _extra(ask: Ask, group: ScoredGroup, pairs: Mapping[int, Pair], scorer: Scorer) -> dict[int, dict[str, Any]]:
    """What an ask wants beyond the log-probs of the sampled tokens, as fields of its rows."""
    task, rows = group.task, list(pairs.values())
    policy, temperature = task.policy_of(ask.weights), task.sampling.temperature
    if ask.want is Want.HIDDEN:
        pooled = await scorer.pool(rows, policy)
        return {i: {"pooled": vector} for i, vector in zip(pairs, pooled, strict=True)}
    if ask.want is Want.DISTRIBUTION:
        if ask.support is ask.weights:
            found = await scorer.likeliest(rows, ask.top, temperature, policy)
        else:
            plain = [Pair(group.rollout.prompt_token_ids, pair.response_ids, task.images) for pair in rows]
            support = await scorer.likeliest(plain, ask.top, temperature, task.policy_of(ask.support))
            found = await scorer.gather(rows, [one.ids for one in support], temperature, policy)
        return {i: {"top_ids": one.ids, "top_logps": one.logps} for i, one in zip(pairs, found, strict=True)}
    return {}


def _pairs(
    group: ScoredGroup, chosen: Sequence[Sequence[Hint | EvidenceReason]], renderer: Renderer, max_model_len: int
) -> dict[tuple[int, int], Pair]:
    task, contexts = group.task, dict[str | tuple[int, ...], tuple[int, ...]]()
    pairs = {}
    for a, (ask, row) in enumerate(zip(task.asks, chosen, strict=True)):
        images = () if ask.without_images else task.images
        for i, hint in enumerate(row):
            if isinstance(hint, EvidenceReason):
                continue
            context = group.rollout.prompt_token_ids  # the very ids that were sampled from
            if hint.context is not ContextName.PLAIN:
                shown = hint.shown or hint.answer
                if shown not in contexts:
                    contexts[shown] = renderer.hinted_ids(task.messages, task.hint, shown, task.placement, task.images)
                context = contexts[shown]
            if task.images and not images:
                context = renderer.mask_images(context)
            response = group.rollout.completions[i].token_ids
            if len(context) + len(response) > max_model_len:
                raise UserError(
                    f"context {hint.context.name} of {len(context)} tokens and a response of {len(response)} "
                    f"exceed the context length {max_model_len} of the teacher"
                )
            pairs[a, i] = Pair(context, response, images, _base_share(ask, task))
    return pairs


def _hint_tokens(group: ScoredGroup, pair: Pair) -> int:
    return max(0, len(pair.context_ids) - len(group.rollout.prompt_token_ids))


def _row(hint: Hint | EvidenceReason, logps: Logps, extra: Mapping[str, Any]) -> EvidenceRow:
    if isinstance(hint, EvidenceReason):
        return EvidenceRow(logps=(), applicable=False, context=ContextName.PLAIN, reason=hint)
    return EvidenceRow(
        logps=logps,
        applicable=True,
        context=hint.context,
        reason=hint.reason,
        answer=hint.answer,
        source=hint.source,
        **extra,
    )
