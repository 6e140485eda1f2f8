"""Which hint each response is scored with: pure functions of a scored group (algorithms 4.2.5).

r+ is the reference answer. r- is the answer of a rejected rollout of the same group: of the rejected ones in order of
(reward, index), the first with a parsed answer that differs from the reference. Every choice carries its reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from cepo.answers import normalise
from cepo.contracts import Ask, ContextName, EvidenceReason, Outcome, ScoredGroup, Verdict

MAX_HINT_CHARACTERS = 100
"""A hint is an answer, not a derivation; what is longer counts as none and so always fits beside the question."""
ACCEPTED = 0.5
"""A rollout below this accuracy is rejected; one without a verdict is not."""


@dataclass(frozen=True)
class Hint:
    """The context one response is scored under."""

    context: ContextName
    answer: str
    reason: EvidenceReason
    source: int = -1
    """Index of the rollout the answer comes from; -1: none."""


def choose_rejected(group: ScoredGroup, *, without: int | None = None) -> Hint | EvidenceReason:
    """The rejected answer of a group, or why there is none.

    Args:
        without: index of a rollout that may not supply it.
    """
    rejected = [(v.reward, i) for i, v in enumerate(group.verdicts) if v.accuracy < ACCEPTED and not v.failed]
    if not rejected:
        return EvidenceReason.NO_REJECTED
    answered = [i for _, i in sorted(rejected) if _usable(group.verdicts[i])]
    if not answered:
        return EvidenceReason.NO_ANSWER
    reference = normalise(group.task.reference_answer)
    differing = [i for i in answered if group.verdicts[i].normalised != reference]
    if not differing:
        return EvidenceReason.SAME_AS_ANSWER
    others = [i for i in differing if i != without]
    if not others:
        return EvidenceReason.ONLY_SELF
    return Hint(ContextName.REJECTED, group.verdicts[others[0]].extracted, EvidenceReason.ASKED, others[0])


def _usable(verdict: Verdict) -> bool:
    return verdict.outcome is Outcome.WRONG and 0 < len(verdict.extracted) <= MAX_HINT_CHARACTERS


def hints(ask: Ask, group: ScoredGroup) -> list[Hint | EvidenceReason]:
    """The context of every response of a group, or why the ask does not apply to it."""
    return [_hint(ask, group, i) for i in range(len(group.verdicts))]


def _hint(ask: Ask, group: ScoredGroup, index: int) -> Hint | EvidenceReason:
    if ask.context is not ContextName.REJECTED:
        return _simple(ask.context, group, EvidenceReason.ASKED)
    chosen = choose_rejected(group, without=index if ask.exclude_self else None)
    if isinstance(chosen, Hint) or ask.otherwise is None:
        return chosen
    return _simple(ask.otherwise, group, chosen)


def _simple(context: ContextName, group: ScoredGroup, reason: EvidenceReason) -> Hint:
    answer = group.task.reference_answer if context is ContextName.ANSWER else ""
    return Hint(context, answer, reason)
