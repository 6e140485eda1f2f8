"""The choice of the rejected answer, and which hint every response is scored with."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cepo.contexts import Hint, hints
from cepo.contracts import Ask, ContextName, EvidenceReason, Outcome, ScoredGroup, Verdict
from tests.factories import make_scored, make_task, make_verdict

REJECTED = ContextName.REJECTED
CORRECT = make_verdict(1.0)
UNBOXED = Verdict(outcome=Outcome.UNPARSED, reward=0.0, accuracy=0.0)
EMPTY_BOX = Verdict(outcome=Outcome.WRONG, reward=0.0, accuracy=0.0)
CUT = Verdict(outcome=Outcome.TRUNCATED, reward=0.0, accuracy=0.0)


def wrong(answer: str, reward: float = 0.0) -> Verdict:
    verdict = make_verdict(0.0, answer)
    return verdict.model_copy(update={"reward": reward})


def group(verdicts: Sequence[Verdict], reference: str = "7") -> ScoredGroup:
    return make_scored(task=make_task(samples=len(verdicts), reference_answer=reference), verdicts=verdicts)


def rejected(scored: ScoredGroup) -> Hint | EvidenceReason:
    """What every response of a group shares as r-."""
    (found,) = set(hints(Ask(context=REJECTED), scored))
    return found


def chosen(hint: Hint | EvidenceReason) -> tuple[str, int]:
    assert isinstance(hint, Hint)
    assert (hint.context, hint.reason) == (REJECTED, EvidenceReason.ASKED)
    return hint.answer, hint.source


@pytest.mark.parametrize(
    ("verdicts", "answer", "source"),
    [
        ([CORRECT, wrong("5"), wrong("6")], "5", 1),
        ([wrong("5", 0.1), CORRECT, wrong("6", 0.0)], "6", 2),
        ([wrong("5", 0.1), wrong("6", 0.1)], "5", 0),
        ([wrong("5"), wrong("6")], "5", 0),
    ],
    ids=["index", "reward-before-index", "equal-rewards", "all-wrong"],
)
def test_the_first_rejected_answer_by_reward_then_index_is_chosen(
    verdicts: list[Verdict], answer: str, source: int
) -> None:
    assert chosen(rejected(group(verdicts))) == (answer, source)


@pytest.mark.parametrize("unusable", [UNBOXED, EMPTY_BOX, CUT], ids=["no-box", "empty-box", "truncated"])
def test_a_rejected_rollout_without_an_answer_is_passed_over(unusable: Verdict) -> None:
    assert chosen(rejected(group([unusable, CORRECT, wrong("5", 0.1)]))) == ("5", 2)
    assert rejected(group([unusable, CORRECT])) is EvidenceReason.NO_ANSWER


def test_a_timeout_and_a_broken_grader_supply_no_answer() -> None:
    for outcome in (Outcome.TIMEOUT, Outcome.GRADER_ERROR):
        verdict = wrong("5").model_copy(update={"outcome": outcome})
        assert rejected(group([verdict, CORRECT])) is EvidenceReason.NO_ANSWER


def test_an_answer_equal_to_the_reference_once_normalised_is_no_contrast() -> None:
    spelled = wrong("1/2").model_copy(update={"extracted": "\\frac{1}{2}"})
    assert rejected(group([spelled, CORRECT], reference="0.5")) is EvidenceReason.SAME_AS_ANSWER
    assert chosen(rejected(group([spelled, wrong("1/3")], reference="0.5"))) == ("1/3", 1)


def test_all_correct_has_no_rejected_rollout() -> None:
    assert rejected(group([CORRECT, CORRECT])) is EvidenceReason.NO_REJECTED


def test_the_answer_is_given_as_it_was_written() -> None:
    spelled = wrong("1/3").model_copy(update={"extracted": "\\dfrac{1}{3}"})
    assert chosen(rejected(group([spelled, CORRECT]))) == ("\\dfrac{1}{3}", 0)


def test_low_accuracy_rejects_whatever_the_reward() -> None:
    rewarded = wrong("5", reward=2.0)
    assert chosen(rejected(group([CORRECT, rewarded]))) == ("5", 1)


def test_the_choice_follows_the_rollouts_when_they_change_places() -> None:
    verdicts = [wrong("5", 0.2), CORRECT, wrong("6", 0.1), UNBOXED]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        assert chosen(rejected(group([verdicts[i] for i in order]))) == ("6", order.index(2))


def test_every_response_shares_the_first_rejected_answer() -> None:
    found = hints(Ask(context=REJECTED), group([CORRECT, wrong("5"), wrong("6")]))
    assert [chosen(hint) for hint in found] == [("5", 1)] * 3


def test_exclude_self_gives_a_rollout_the_next_answer() -> None:
    ask = Ask(context=REJECTED, exclude_self=True)
    found = hints(ask, group([CORRECT, wrong("5"), wrong("6")]))
    assert [chosen(hint) for hint in found] == [("5", 1), ("6", 2), ("5", 1)]


def test_exclude_self_takes_a_peer_with_the_same_answer() -> None:
    found = hints(Ask(context=REJECTED, exclude_self=True), group([wrong("5"), wrong("5")]))
    assert [chosen(hint) for hint in found] == [("5", 1), ("5", 0)]


@pytest.mark.parametrize(
    ("otherwise", "answer"), [(ContextName.PLAIN, ""), (ContextName.ANSWER, "7")], ids=["plain", "answer"]
)
def test_only_self_falls_back_for_that_rollout_alone(otherwise: ContextName, answer: str) -> None:
    ask = Ask(context=REJECTED, otherwise=otherwise, exclude_self=True)
    first, second = hints(ask, group([CORRECT, wrong("5")]))
    assert chosen(first) == ("5", 1)
    assert second == Hint(otherwise, answer, EvidenceReason.ONLY_SELF)


@pytest.mark.parametrize(
    ("verdicts", "reason"),
    [
        ([CORRECT, CORRECT], EvidenceReason.NO_REJECTED),
        ([CORRECT, UNBOXED], EvidenceReason.NO_ANSWER),
        ([CORRECT, wrong("7")], EvidenceReason.SAME_AS_ANSWER),
    ],
    ids=lambda value: value.name if isinstance(value, EvidenceReason) else "",
)
def test_the_fallback_says_why(verdicts: list[Verdict], reason: EvidenceReason) -> None:
    scored = group(verdicts)
    plain = hints(Ask(context=REJECTED, otherwise=ContextName.PLAIN), scored)
    answer = hints(Ask(context=REJECTED, otherwise=ContextName.ANSWER), scored)
    assert plain == [Hint(ContextName.PLAIN, "", reason)] * 2
    assert answer == [Hint(ContextName.ANSWER, "7", reason)] * 2
    assert hints(Ask(context=REJECTED), scored) == [reason] * 2


def test_the_other_contexts_need_no_choice() -> None:
    scored = group([CORRECT, UNBOXED])
    assert hints(Ask(context=ContextName.PLAIN), scored) == [Hint(ContextName.PLAIN, "", EvidenceReason.ASKED)] * 2
    assert hints(Ask(context=ContextName.ANSWER), scored) == [Hint(ContextName.ANSWER, "7", EvidenceReason.ASKED)] * 2
