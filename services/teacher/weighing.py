"""From log-probs to credit, by the rule of the training method that a request names.

The methods' own classes say which contexts are contrasted and what their defaults are; this module is the only one of
the teacher that reads them.

Example: with a given advantage of 1, lam 0.5 and eps_w 0.5, a token that has log-prob -0.1 under r+ and -11.1 under r-
has under CEPO a delta of 11.0, a weight of 59,874 clipped to 1.5, and the advantage 1 * (0.5 + 0.5 * 1.5) = 1.25.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Literal

import torch

from cepo.algo.core import Credit, credit, group_advantage
from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.evidence import EvidenceRatio
from cepo.algo.variants import ALGORITHMS
from cepo.credit import CreditRequest, Grade, Method, Negative, ResponseCredit, Token
from cepo.messages.groups import Ask, ContextName, Given, ScoredGroup
from cepo.messages.spans import sampled_mask
from cepo.messages.vocabulary import CORRECT_FROM, DEAD_BAND
from cepo.prompts.spans import Span
from cepo.teaching.contexts import Hint
from cepo.teaching.handler import Logps


@dataclass(frozen=True)
class Rule:
    """How a method weighs: by the log-probs under `numerator` minus those under `denominator`."""

    numerator: ContextName
    denominator: ContextName
    lam: float
    eps_w: float
    dead_band: float = DEAD_BAND
    """Nats; deltas within it count as 0 in the shares of a response."""


def rule_of(method: Method, dead_band: float = DEAD_BAND) -> Rule:
    """The rule of a training method, with the method's own defaults for the options that the request leaves out.

    A method that divides no evidence, such as GRPO, contrasts the plain prompt with itself: delta is 0. Its `eps_w` is
    CEPO's and changes nothing.
    """
    training = ALGORITHMS[method.name]
    options = method.model_dump(exclude_none=True)
    algorithm = training.model_validate({key: options[key] for key in options.keys() & training.model_fields.keys()})
    if isinstance(algorithm, EvidenceRatio):
        numerator, denominator = (ask.context for ask in algorithm.contrast)
        return Rule(numerator, denominator, algorithm.lam, algorithm.eps_w, dead_band)
    return Rule(ContextName.PLAIN, ContextName.PLAIN, 0.0, options.get("eps_w", Cepo().eps_w), dead_band)


def rejected_ask(method: Method) -> Ask:
    """CEPO's ask for r-, with the options of the request.

    With `no_negative = "grpo"` CEPO leaves a response without r- unweighed. Here r+ takes the place of r-, so that
    delta is 0 and the reply has all three log-probs.
    """
    ask = Cepo(no_negative=method.no_negative, exclude_self=method.exclude_self).contrast[1]
    return ask.model_copy(update={"otherwise": ask.otherwise or ContextName.ANSWER})


@dataclass(frozen=True)
class Standing:
    """The reward and the advantage of a response within its group."""

    reward: float | None
    advantage: float
    source: Literal["given", "group", "single"]
    grade: Grade | None


def standings(request: CreditRequest, scored: ScoredGroup | None) -> list[Standing]:
    """Rewards and advantages: those that the request gives, and otherwise GRPO's over the rewards of the group.

    GRPO's advantage of a single reward would be 0. A single response therefore gets +1 if it is right and -1 if it is
    wrong, which shows the credit that a right and a wrong rollout would get.
    """
    verdicts = scored.verdicts if scored is not None else [None] * len(request.responses)
    rewards = [
        verdict.reward if verdict is not None else sent.reward
        for verdict, sent in zip(verdicts, request.responses, strict=True)
    ]
    known = [reward for reward in rewards if reward is not None]
    reward_B = torch.tensor([math.nan if reward is None else reward for reward in rewards])
    adv_B = group_advantage(reward_B, torch.zeros(len(rewards), dtype=torch.long))
    rows = []
    for at, (sent, verdict, reward) in enumerate(zip(request.responses, verdicts, rewards, strict=True)):
        grade = None
        if verdict is not None:
            outcome = verdict.outcome.name.lower()
            grade = Grade(
                outcome=outcome, accuracy=verdict.accuracy, extracted=verdict.extracted, reason=verdict.reason
            )
        if sent.advantage is not None:
            rows.append(Standing(reward, sent.advantage, "given", grade))
        elif len(known) > 1:
            rows.append(Standing(reward, float(adv_B[at]), "group", grade))
        else:
            assert reward is not None
            rows.append(Standing(reward, 1.0 if reward >= CORRECT_FROM else -1.0, "single", grade))
    return rows


def weighed(
    text: str,
    ids: Sequence[int],
    places: Sequence[Span],
    given: Sequence[Given],
    standing: Standing,
    logps: Mapping[ContextName, Logps],
    negative: Hint | None,
    rule: Rule,
) -> ResponseCredit:
    """The credit of one response of T tokens.

    Args:
        places: the [start, end) characters of each token in `text`.
        given: the tokens that were given. They have no log-probs, no credit, and no part in the shares of the response.
        logps: T log-probs under each context; the rejected one is absent if the method does not need r- and there is
            no grader to choose it.
        negative: the hint under which the log-probs of the rejected context were measured.
    """
    sampled = sampled_mask(given, len(ids))
    tokens = _tokens(text, ids, places, _credit(standing.advantage, logps, rule, sampled), logps, sampled)
    own = list(compress(tokens, sampled))
    return ResponseCredit(
        text=text,
        tokens=tokens,
        given=list(given),
        reward=standing.reward,
        advantage=standing.advantage,
        advantage_from=standing.source,
        grade=standing.grade,
        negative=_negative(negative),
        delta_pos_fraction=_share([token.delta > rule.dead_band for token in own]),
        delta_neg_fraction=_share([token.delta < -rule.dead_band for token in own]),
        clip_rate=_share([token.clipped for token in own]),
        sharpness=_sharpness(standing.advantage, own, negative, rule.dead_band),
    )


def _tokens(
    text: str,
    ids: Sequence[int],
    places: Sequence[Span],
    parts: Credit,
    logps: Mapping[ContextName, Logps],
    sampled: Sequence[bool],
) -> list[Token]:
    columns = (parts.delta_BT, parts.weight_BT, parts.weight_clipped_BT, parts.clipped_BT, parts.adv_BT)
    rows = zip(*(column[0].tolist() for column in columns), strict=True)
    plain, positive, rejected = (
        _measured(logps.get(context), sampled)
        for context in (ContextName.PLAIN, ContextName.ANSWER, ContextName.REJECTED)
    )
    return [
        Token(
            id=token,
            text=text[start:end],
            start=start,
            end=end,
            logp_plain=plain[at],
            logp_positive=positive[at],
            logp_negative=rejected[at],
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


def _measured(logps: Logps | None, sampled: Sequence[bool]) -> list[float | None]:
    """The log-prob of each token; None for a given token, and for every token of a context that was not scored."""
    if logps is None:
        return [None] * len(sampled)
    return [logp if own else None for logp, own in zip(logps, sampled, strict=True)]


def _credit(advantage: float, logps: Mapping[ContextName, Logps], rule: Rule, sampled: Sequence[bool]) -> Credit:
    numerator_BT, denominator_BT = (
        torch.tensor([logps[context]], dtype=torch.float32) for context in (rule.numerator, rule.denominator)
    )
    sampled_BT = torch.tensor([sampled], dtype=torch.bool)
    adv_BT = torch.where(sampled_BT, advantage, 0.0)
    return credit(adv_BT, numerator_BT, denominator_BT, rule.lam, rule.eps_w, sampled_BT)


def _negative(hint: Hint | None) -> Negative:
    if hint is None:
        return Negative(context="none", answer="", source=-1, reason="not_asked")
    reason = hint.reason.name.lower()
    if hint.context is ContextName.REJECTED and hint.source < 0:
        reason = "given"
    return Negative(context=hint.context.name.lower(), answer=hint.answer, source=hint.source, reason=reason)


def _sharpness(advantage: float, tokens: Sequence[Token], negative: Hint | None, dead_band: float) -> float | None:
    """Proposition 1: the share of tokens whose weight with r- exceeds the weight with the plain prompt."""
    has_rejected = negative is not None and negative.context is ContextName.REJECTED
    if not has_rejected or advantage == 0 or not tokens:
        return None
    sign = math.copysign(1.0, advantage)
    pairs = [(token.logp_negative, token.logp_plain) for token in tokens]
    return _share(
        [sign * (base - rejected) > dead_band for rejected, base in pairs if rejected is not None is not base]
    )


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
