"""Chooses the hint under which each response of a scored group is measured. Pure functions.

r+ (context ANSWER) is the reference answer, the reference solution or a correct rollout of the group. r- (context
REJECTED) is a rejected rollout: the first one, in order of (reward, index), with an answer that differs from the
reference. A rollout is shown by its answer or by tokens of its response. Every hint carries the reason of its choice.

Example: four responses to a problem whose reference answer is 7.

    index  answer  correct  reward  |  r+             r-                r- with exclude_self
      0    7       yes       1.0    |  7 (reference)  5 (rollout 2)     5 (rollout 2)
      1    6       no        0.1    |  7              5                 5
      2    5       no        0.0    |  7              5                 6 (rollout 1)
      3    none    no        0.0    |  7              5                 5

Rollouts 1, 2 and 3 are rejected. Rollout 3 has no answer to show. Rollout 2 has the lower reward of the other two, so
every response is contrasted with 5. With `exclude_self` a rollout is never shown to itself, so response 2 gets the
next answer, 6.

If rollouts 1 and 2 had no answer either, no response would have r-, for the reason NO_ANSWER. The ask then says what is
measured instead: with `otherwise = PLAIN` the prompt without a hint, with `otherwise = None` nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cepo.answers.notation import normalise
from cepo.messages.groups import Ask, ContextName, EvidenceReason, Feedback, Outcome, Pick, ScoredGroup
from cepo.teaching.published import published_answer

MAX_HINT_CHARACTERS = 100
"""A longer extracted text is a derivation and not an answer, so it is never shown as one."""
NOTHING = "none"
"""A wrong answer which says that no answer exists. A contrast with it would favour any answer."""
_ANSWERS = (Feedback.ANSWER, Feedback.PEER_ANSWER)


@dataclass(frozen=True)
class Hint:
    """The context of one response. Its fields are those of an evidence row."""

    context: ContextName
    answer: str
    """The text shown; empty if tokens are shown or nothing is."""
    reason: EvidenceReason
    source: int = -1
    """Index of the rollout that is shown, or -1."""
    shown: tuple[int, ...] = ()
    """The token ids shown, which are part of the source's response."""
    applicable: bool = True
    """False if the response is not measured."""


@dataclass(frozen=True)
class _Candidates:
    """The rollouts that may be shown, the preferred one first; if there are none, `reason` says why."""

    indices: tuple[int, ...] = ()
    reason: EvidenceReason = EvidenceReason.ASKED


@dataclass(frozen=True)
class _Choice:
    """The rollout that is shown to one response; -1 if there is none, for `reason`."""

    source: int = -1
    reason: EvidenceReason = EvidenceReason.ASKED


def not_applicable(reason: EvidenceReason) -> Hint:
    """The hint of a response that is not measured."""
    return Hint(ContextName.PLAIN, "", reason, applicable=False)


def hints(ask: Ask, group: ScoredGroup) -> list[Hint]:
    """Returns the hint of every response of a group, in order."""
    return [
        hint if hint.applicable or ask.otherwise is None else _without_peer(ask.otherwise, group, hint.reason)
        for hint in _asked(ask, group)
    ]


def _asked(ask: Ask, group: ScoredGroup) -> list[Hint]:
    """The hints without the fallback to `ask.otherwise`."""
    samples = len(group.verdicts)
    if ask.context is not ContextName.REJECTED:
        if ask.context is ContextName.PLAIN or ask.feedback is Feedback.ANSWER:
            return [_without_peer(ask.context, group, EvidenceReason.ASKED)] * samples
        if ask.feedback is Feedback.SOLUTION:
            solution = group.task.reference_solution
            hint = Hint(ask.context, solution, EvidenceReason.ASKED)
            return [hint if solution else not_applicable(EvidenceReason.NO_SOLUTION)] * samples
    candidates = _candidates(ask, group)
    return [_peer(ask, group, _choice(ask, group, candidates, i)) for i in range(samples)]


def _without_peer(context: ContextName, group: ScoredGroup, reason: EvidenceReason) -> Hint:
    answer = group.task.reference_answer if context is ContextName.ANSWER else ""
    return Hint(context, answer, reason)


def _candidates(ask: Ask, group: ScoredGroup) -> _Candidates:
    """Applies each filter to the rollouts; the first filter that leaves none gives the reason."""
    left = list(range(len(group.verdicts)))
    for reason, keeps in _filters(ask, group):
        left = [i for i in left if keeps(i)]
        if not left:
            return _Candidates(reason=reason)
    return _Candidates(tuple(_in_order(ask, group, left)))


def _filters(ask: Ask, group: ScoredGroup) -> list[tuple[EvidenceReason, Callable[[int], bool]]]:
    verdicts, reference = group.verdicts, normalise(group.task.reference_answer)

    def says_something(i: int) -> bool:
        return _says_something(ask, group, i)

    def has_wrong_answer(i: int) -> bool:
        is_none = verdicts[i].normalised.casefold() == NOTHING
        return verdicts[i].outcome is Outcome.WRONG and says_something(i) and not is_none

    if ask.context is not ContextName.REJECTED:
        return [
            (EvidenceReason.NO_CORRECT, lambda i: verdicts[i].correct),
            (EvidenceReason.NO_ANSWER, says_something),
        ]
    rejected = (EvidenceReason.NO_REJECTED, lambda i: not verdicts[i].correct and not verdicts[i].failed)
    if ask.as_published:
        return [rejected]
    return [
        rejected,
        (EvidenceReason.NO_ANSWER, has_wrong_answer),
        (EvidenceReason.SAME_AS_ANSWER, lambda i: verdicts[i].normalised != reference),
    ]


def _choice(ask: Ask, group: ScoredGroup, candidates: _Candidates, index: int) -> _Choice:
    """The candidate that is shown to the response at `index`."""
    if not candidates.indices:
        return _Choice(reason=candidates.reason)
    if ask.pick is Pick.OWN and index in candidates.indices:
        return _Choice(index)
    others = [i for i in candidates.indices if not (ask.exclude_self and i == index)]
    if not others:
        return _Choice(reason=EvidenceReason.ONLY_SELF)
    if ask.context is ContextName.REJECTED and ask.feedback in _ANSWERS:
        first_with: dict[str, int] = {}
        for i in others:
            first_with.setdefault(_answer(ask, group, i, normalised=True), i)
        others = list(first_with.values())
    return _Choice(others[ask.rank]) if ask.rank < len(others) else _Choice(reason=EvidenceReason.TOO_FEW)


def _says_something(ask: Ask, group: ScoredGroup, index: int) -> bool:
    """Whether a rollout has an answer to show, or tokens; a rejected rollout needs an answer in either case."""
    extracted = group.verdicts[index].extracted
    if ask.feedback in _ANSWERS:
        return 0 < len(extracted) <= MAX_HINT_CHARACTERS
    return bool(group.rollout.completions[index].token_ids) and (ask.context is ContextName.ANSWER or bool(extracted))


def _in_order(ask: Ask, group: ScoredGroup, indices: Sequence[int]) -> list[int]:
    """The rollouts in the order of `ask.pick`; ties go to the lower index."""
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
            case Pick.RANDOM:  # by content, so that the order of the rollouts does not matter
                drawn = f"{group.task.seed}/{tuple(completions[i].token_ids)}"
                return hashlib.sha256(drawn.encode()).hexdigest(), i
        return sign * group.verdicts[i].reward, i

    return sorted(indices, key=place)


def _answer(ask: Ask, group: ScoredGroup, index: int, *, normalised: bool = False) -> str:
    if ask.as_published:
        return published_answer(group.rollout.completions[index].text)
    verdict = group.verdicts[index]
    return verdict.normalised if normalised else verdict.extracted


def _peer(ask: Ask, group: ScoredGroup, choice: _Choice) -> Hint:
    """Shows the chosen rollout by its answer, or by all, the first or the last tokens of its response."""
    if choice.source < 0:
        return not_applicable(choice.reason)
    if ask.feedback in _ANSWERS:
        return Hint(ask.context, _answer(ask, group, choice.source), choice.reason, choice.source)
    ids = tuple(group.rollout.completions[choice.source].token_ids)
    match ask.feedback:
        case Feedback.PEER_PREFIX:
            ids = ids[: ask.tokens]
        case Feedback.PEER_SUFFIX:
            ids = ids[max(0, len(ids) - ask.tokens) :]
    return Hint(ask.context, "", choice.reason, choice.source, ids)
