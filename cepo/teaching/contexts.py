"""Which hint each response is scored with: pure functions of a scored group.

r+ is the reference answer or solution, or says what a correct rollout of the group says. r- says what a rejected
rollout says: of the rejected ones in order of (reward, index), the first with a parsed answer that differs from the
reference. A peer is shown by its answer or by token ids of its response. Every choice carries its reason.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cepo.answers.extract import normalise
from cepo.messages.groups import Ask, ContextName, EvidenceReason, Feedback, Outcome, Pick, ScoredGroup
from cepo.teaching.published import published_answer

MAX_HINT_CHARACTERS = 100
"""An answer is no derivation; what is longer counts as none and so always fits beside the question."""
ACCEPTED = 0.5
"""A rollout below this accuracy is rejected; one without a verdict is not."""
NOTHING = "none"
"""A wrong answer that only says there is none; a contrast with it would be evidence for any answer."""
_ANSWERS = (Feedback.ANSWER, Feedback.PEER_ANSWER)


@dataclass(frozen=True)
class Hint:
    """The context one response is scored under."""

    context: ContextName
    answer: str
    """The text that is shown; empty where tokens are."""
    reason: EvidenceReason
    source: int = -1
    """Index of the rollout that is shown; -1: none."""
    shown: tuple[int, ...] = ()
    """Those tokens of the source's response that are shown."""


def hints(ask: Ask, group: ScoredGroup) -> list[Hint | EvidenceReason]:
    """The context of every response of a group, or why the ask does not apply to it."""
    return [_hint(ask, group, i) for i in range(len(group.verdicts))]


def _hint(ask: Ask, group: ScoredGroup, index: int) -> Hint | EvidenceReason:
    chosen = _asked(ask, group, index)
    if isinstance(chosen, Hint) or ask.otherwise is None:
        return chosen
    return _given(ask.otherwise, group, chosen)


def _asked(ask: Ask, group: ScoredGroup, index: int) -> Hint | EvidenceReason:
    if ask.context is not ContextName.REJECTED:
        if ask.context is ContextName.PLAIN or ask.feedback is Feedback.ANSWER:
            return _given(ask.context, group, EvidenceReason.ASKED)
        if ask.feedback is Feedback.SOLUTION:
            solution = group.task.reference_solution
            return Hint(ask.context, solution, EvidenceReason.ASKED) if solution else EvidenceReason.NO_SOLUTION
    source = _source(ask, group, index)
    return source if isinstance(source, EvidenceReason) else _peer(ask, group, source)


def _given(context: ContextName, group: ScoredGroup, reason: EvidenceReason) -> Hint:
    """A context that needs no peer."""
    answer = group.task.reference_answer if context is ContextName.ANSWER else ""
    return Hint(context, answer, reason)


def _source(ask: Ask, group: ScoredGroup, index: int) -> int | EvidenceReason:
    """The rollout that is shown to the one at `index`, or why there is none."""
    found = _rejected(ask, group) if ask.context is ContextName.REJECTED else _correct(ask, group)
    if isinstance(found, EvidenceReason):
        return found
    others = [i for i in _in_order(ask, group, found) if not (ask.exclude_self and i == index)]
    if not others:
        return EvidenceReason.ONLY_SELF
    if ask.context is ContextName.REJECTED:
        first = {_answer(ask, group, i, normalised=True): i for i in reversed(others)}
        others = sorted(first.values(), key=others.index)
    return others[ask.rank] if ask.rank < len(others) else EvidenceReason.TOO_FEW


def _correct(ask: Ask, group: ScoredGroup) -> list[int] | EvidenceReason:
    correct = [i for i, v in enumerate(group.verdicts) if v.accuracy >= ACCEPTED]
    if not correct:
        return EvidenceReason.NO_CORRECT
    return [i for i in correct if _says_something(ask, group, i)] or EvidenceReason.NO_ANSWER


def _rejected(ask: Ask, group: ScoredGroup) -> list[int] | EvidenceReason:
    verdicts = group.verdicts
    rejected = [i for i, v in enumerate(verdicts) if v.accuracy < ACCEPTED and not v.failed]
    if not rejected:
        return EvidenceReason.NO_REJECTED
    if ask.as_published:
        return rejected
    answered = [i for i in rejected if verdicts[i].outcome is Outcome.WRONG and _says_something(ask, group, i)]
    answered = [i for i in answered if verdicts[i].normalised.casefold() != NOTHING]
    if not answered:
        return EvidenceReason.NO_ANSWER
    reference = normalise(group.task.reference_answer)
    return [i for i in answered if verdicts[i].normalised != reference] or EvidenceReason.SAME_AS_ANSWER


def _says_something(ask: Ask, group: ScoredGroup, index: int) -> bool:
    """Whether a rollout has what would be shown of it; a rejected one is shown for its answer, however much of it."""
    extracted = group.verdicts[index].extracted
    if ask.feedback in _ANSWERS:
        return 0 < len(extracted) <= MAX_HINT_CHARACTERS
    return bool(group.rollout.completions[index].token_ids) and (ask.context is ContextName.ANSWER or bool(extracted))


def _in_order(ask: Ask, group: ScoredGroup, indices: Sequence[int]) -> list[int]:
    """The rollouts that could be shown, the one to be shown first; ties go to the lower index."""
    sign = 1 if ask.context is ContextName.REJECTED else -1
    completions = group.rollout.completions
    answers = {i: _answer(ask, group, i, normalised=True) for i in indices}
    common = Counter(answers.values())

    def place(i: int) -> tuple[float | str, int]:
        match ask.pick:
            case Pick.SHORTEST:
                return len(completions[i].token_ids), i
            case Pick.MOST_COMMON:
                return -common[answers[i]], i
            case Pick.RANDOM:  # by content, so that the order of the rollouts cannot matter
                drawn = f"{group.task.seed}/{completions[i].token_ids}"
                return hashlib.sha256(drawn.encode()).hexdigest(), i
        return sign * group.verdicts[i].reward, i

    return sorted(indices, key=place)


def _answer(ask: Ask, group: ScoredGroup, index: int, *, normalised: bool = False) -> str:
    if ask.as_published:
        return published_answer(group.rollout.completions[index].text)
    verdict = group.verdicts[index]
    return verdict.normalised if normalised else verdict.extracted


def _peer(ask: Ask, group: ScoredGroup, source: int) -> Hint:
    """What is shown of a rollout."""
    if ask.feedback in _ANSWERS:
        return Hint(ask.context, _answer(ask, group, source), EvidenceReason.ASKED, source)
    ids = group.rollout.completions[source].token_ids
    match ask.feedback:
        case Feedback.PEER_PREFIX:
            ids = ids[: ask.tokens]
        case Feedback.PEER_SUFFIX:
            ids = ids[max(0, len(ids) - ask.tokens) :]
    return Hint(ask.context, "", EvidenceReason.ASKED, source, ids)
