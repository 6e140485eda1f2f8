"""A scored group becomes an evidenced one: choose the hints, render the contexts, score the sampled tokens."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cepo.adapters import Engine
from cepo.contexts import Hint, hints
from cepo.contracts import (
    ContextName,
    Evidence,
    EvidencedGroup,
    EvidenceReason,
    EvidenceRow,
    PolicyRef,
    ScoredGroup,
)
from cepo.errors import UserError
from cepo.rendering import Renderer, with_hint

Logps = tuple[float, ...]


@dataclass(frozen=True)
class Pair:
    """One response under one context, as token ids."""

    context_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


class Scorer(Engine, Protocol):
    """An engine that scores given tokens with any policy it is asked for."""

    async def score(self, pairs: Sequence[Pair], temperature: float, policy: PolicyRef) -> list[Logps]:
        """Log-probs of every response token, of logits over the temperature; contexts repeat across pairs."""
        ...


def make_handler(
    scorer: Scorer, renderer: Renderer, max_model_len: int
) -> Callable[[ScoredGroup], Awaitable[EvidencedGroup]]:
    """The teacher function behind the stage loop and the gRPC call."""

    async def score(group: ScoredGroup) -> EvidencedGroup:
        begun = time.perf_counter()
        task = group.task
        chosen = [hints(ask, group) for ask in task.asks]
        pairs = _pairs(group, chosen, renderer, max_model_len)
        proof = await scorer.load(task.teacher)
        wanted = list(dict.fromkeys(pairs.values()))
        scored = dict(zip(wanted, await scorer.score(wanted, task.sampling.temperature, task.teacher), strict=True))
        evidence = tuple(
            Evidence(ask=ask, rows=tuple(_row(hint, pairs.get((a, i)), scored) for i, hint in enumerate(row)))
            for a, (ask, row) in enumerate(zip(task.asks, chosen, strict=True))
        )
        return EvidencedGroup(scored=group, evidence=evidence, proof=proof, seconds=time.perf_counter() - begun)

    return score


def _pairs(
    group: ScoredGroup, chosen: Sequence[Sequence[Hint | EvidenceReason]], renderer: Renderer, max_model_len: int
) -> dict[tuple[int, int], Pair]:
    contexts: dict[tuple[ContextName, str], tuple[int, ...]] = {
        (ContextName.PLAIN, ""): group.rollout.prompt_token_ids  # the very ids that were sampled from
    }
    pairs = {}
    for a, row in enumerate(chosen):
        for i, hint in enumerate(row):
            if isinstance(hint, EvidenceReason):
                continue
            key = (hint.context, hint.answer)
            if key not in contexts:
                contexts[key] = renderer.prompt_ids(with_hint(group.task.messages, group.task.hint, hint.answer))
            response = group.rollout.completions[i].token_ids
            if len(contexts[key]) + len(response) > max_model_len:
                raise UserError(
                    f"context {hint.context.name} of {len(contexts[key])} tokens and a response of {len(response)} "
                    f"exceed the context length {max_model_len} of the teacher"
                )
            pairs[a, i] = Pair(contexts[key], response)
    return pairs


def _row(hint: Hint | EvidenceReason, pair: Pair | None, scored: Mapping[Pair, Logps]) -> EvidenceRow:
    if isinstance(hint, EvidenceReason):
        return EvidenceRow(logps=(), applicable=False, context=ContextName.PLAIN, reason=hint)
    assert pair is not None
    return EvidenceRow(
        logps=scored[pair],
        applicable=True,
        context=hint.context,
        reason=hint.reason,
        answer=hint.answer,
        source=hint.source,
    )
