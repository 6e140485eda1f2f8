"""From evidence to credit: the pure functions of `cepo.algo.core`, one response at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cepo.algo.core import Credit, credit, group_advantage
from cepo.credit import CreditRequest, Grade, Method, Negative, ResponseCredit, Token
from cepo.messages.groups import ContextName, ScoredGroup
from cepo.prompts.spans import Span
from cepo.teaching.contexts import ACCEPTED, Hint
from cepo.teaching.handler import Logps


@dataclass(frozen=True)
class Evidence:
    """The log-probs of one response under its contexts."""

    plain: Logps
    positive: Logps
    negative: Logps | None
    hint: Hint | None
    """Why `negative` is what it is; None with it."""


@dataclass(frozen=True)
class Standing:
    """Where a response stands in its group."""

    reward: float | None
    advantage: float
    source: Literal["given", "group", "single"]
    grade: Grade | None


def standings(request: CreditRequest, scored: ScoredGroup | None) -> list[Standing]:
    """Rewards and advantages: given ones first, else GRPO's over the rewards of the group.

    A single reward has nothing to be compared with, and GRPO's advantage would be 0; so it is +1 for a right response
    and -1 for a wrong one, which shows what credit a right and a wrong rollout would get.
    """
    verdicts = scored.verdicts if scored is not None else [None] * len(request.responses)
    rewards = [
        verdict.reward if verdict is not None else sent.reward
        for verdict, sent in zip(verdicts, request.responses, strict=True)
    ]
    known = [reward for reward in rewards if reward is not None]
    reward_B = torch.tensor([math.nan if reward is None else reward for reward in rewards])
    adv_B = group_advantage(reward_B, torch.zeros(len(rewards), dtype=torch.long))
    found = []
    for at, (sent, verdict, reward) in enumerate(zip(request.responses, verdicts, rewards, strict=True)):
        grade = None
        if verdict is not None:
            outcome = verdict.outcome.name.lower()
            grade = Grade(
                outcome=outcome, accuracy=verdict.accuracy, extracted=verdict.extracted, reason=verdict.reason
            )
        if sent.advantage is not None:
            found.append(Standing(reward, sent.advantage, "given", grade))
        elif len(known) > 1:
            found.append(Standing(reward, float(adv_B[at]), "group", grade))
        else:
            assert reward is not None
            found.append(Standing(reward, 1.0 if reward >= ACCEPTED else -1.0, "single", grade))
    return found


def weighed(
    text: str, ids: Sequence[int], places: Sequence[Span], standing: Standing, evidence: Evidence, method: Method
) -> ResponseCredit:
    """One response, token by token."""
    parts = _credit(method, standing.advantage, evidence)
    columns = (parts.delta_BT, parts.weight_BT, parts.weight_clipped_BT, parts.clipped_BT, parts.adv_BT)
    rows = zip(*(column[0].tolist() for column in columns), strict=True)
    negative = evidence.negative or (None,) * len(ids)
    tokens = [
        Token(
            id=token,
            text=text[start:end],
            start=start,
            end=end,
            logp_plain=evidence.plain[at],
            logp_positive=evidence.positive[at],
            logp_negative=negative[at],
            delta=delta,
            weight=weight,
            weight_clipped=weight_clipped,
            clipped=clipped,
            advantage=advantage,
        )
        for at, (token, (start, end), (delta, weight, weight_clipped, clipped, advantage)) in enumerate(
            zip(ids, places, rows, strict=True)
        )
    ]
    return ResponseCredit(
        text=text,
        tokens=tokens,
        reward=standing.reward,
        advantage=standing.advantage,
        advantage_from=standing.source,
        grade=standing.grade,
        negative=_negative(evidence.hint),
        delta_pos_fraction=_share([token.delta > 0 for token in tokens]),
        delta_neg_fraction=_share([token.delta < 0 for token in tokens]),
        clip_rate=_share([token.clipped for token in tokens]),
        sharpness=_sharpness(standing.advantage, evidence),
    )


def _credit(method: Method, advantage: float, evidence: Evidence) -> Credit:
    numerator, denominator, lam = evidence.positive, evidence.plain, method.lam
    if method.name == "cepo":
        assert evidence.negative is not None
        denominator = evidence.negative
    elif method.name == "grpo":
        numerator, lam = evidence.plain, 0.0
    numerator_BT, denominator_BT = (torch.tensor([row], dtype=torch.float32) for row in (numerator, denominator))
    return credit(_like(numerator_BT, advantage), numerator_BT, denominator_BT, lam, method.eps_w)


def _like(value_BT: Tensor, advantage: float) -> Tensor:
    return torch.full_like(value_BT, advantage)


def _negative(hint: Hint | None) -> Negative:
    if hint is None:
        return Negative(context="none", answer="", source=-1, reason="not_asked")
    reason = hint.reason.name.lower()
    if hint.context is ContextName.REJECTED and hint.source < 0:
        reason = "given"
    return Negative(context=hint.context.name.lower(), answer=hint.answer, source=hint.source, reason=reason)


def _sharpness(advantage: float, evidence: Evidence) -> float | None:
    rejected = evidence.hint is not None and evidence.hint.context is ContextName.REJECTED
    if not rejected or advantage == 0 or not evidence.plain:
        return None
    assert evidence.negative is not None
    pairs = zip(evidence.negative, evidence.plain, strict=True)
    return _share([(negative < plain) if advantage > 0 else (negative > plain) for negative, plain in pairs])


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
