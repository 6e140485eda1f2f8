"""The choice of the rejected answer and of the hint of each response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import (
    Ask,
    Completion,
    ContextName,
    EvidenceReason,
    Feedback,
    FinishReason,
    Outcome,
    Pick,
    ScoredGroup,
    Verdict,
)
from cepo.teaching.contexts import Hint, hints, not_applicable
from tests.helpers.factories import make_scored, make_task, make_verdict

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


def rejected(scored: ScoredGroup, **options: Any) -> Hint:
    """The r- that all responses of a group share."""
    (hint,) = set(hints(Ask(context=REJECTED, **options), scored))
    return hint


def chosen(hint: Hint) -> tuple[str, int]:
    assert hint.applicable
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


@pytest.mark.parametrize(
    "unusable", [UNBOXED, EMPTY_BOX, CUT, wrong("None")], ids=["no-box", "empty-box", "truncated", "none"]
)
def test_a_rejected_rollout_without_an_answer_is_passed_over(unusable: Verdict) -> None:
    assert chosen(rejected(group([unusable, CORRECT, wrong("5", 0.1)]))) == ("5", 2)
    assert rejected(group([unusable, CORRECT])) == not_applicable(EvidenceReason.NO_ANSWER)


def test_a_sample_without_a_verdict_is_not_rejected() -> None:
    for outcome in (Outcome.TIMEOUT, Outcome.GRADER_ERROR):
        verdict = wrong("5").model_copy(update={"outcome": outcome})
        assert rejected(group([verdict, CORRECT])) == not_applicable(EvidenceReason.NO_REJECTED)


def test_an_answer_equal_to_the_reference_once_normalised_is_no_contrast() -> None:
    spelled = wrong("1/2").model_copy(update={"extracted": "\\frac{1}{2}"})
    assert rejected(group([spelled, CORRECT], reference="0.5")) == not_applicable(EvidenceReason.SAME_AS_ANSWER)
    assert chosen(rejected(group([spelled, wrong("1/3")], reference="0.5"))) == ("1/3", 1)


def test_the_worked_example_of_the_module() -> None:
    scored = group([CORRECT, wrong("6", 0.1), wrong("5"), UNBOXED])
    assert hints(Ask(context=ContextName.ANSWER), scored) == [Hint(ContextName.ANSWER, "7", EvidenceReason.ASKED)] * 4
    assert [chosen(hint) for hint in hints(Ask(context=REJECTED), scored)] == [("5", 2)] * 4
    alone = hints(Ask(context=REJECTED, exclude_self=True), scored)
    assert [chosen(hint) for hint in alone] == [("5", 2), ("5", 2), ("6", 1), ("5", 2)]
    without = group([CORRECT, UNBOXED, UNBOXED, UNBOXED])
    plain = Hint(ContextName.PLAIN, "", EvidenceReason.NO_ANSWER)
    assert hints(Ask(context=REJECTED, otherwise=ContextName.PLAIN), without) == [plain] * 4
    assert hints(Ask(context=REJECTED), without) == [not_applicable(EvidenceReason.NO_ANSWER)] * 4


def test_a_rollout_may_be_shown_its_own_wrong_answer_and_a_right_one_the_answer_of_the_lowest_reward() -> None:
    scored = group([CORRECT, wrong("6", 0.1), wrong("5"), UNBOXED])
    own = hints(Ask(context=REJECTED, pick=Pick.OWN), scored)
    assert [chosen(hint) for hint in own] == [("5", 2), ("6", 1), ("5", 2), ("5", 2)]


def test_whole_wrong_responses_are_shown_although_their_answers_are_equal() -> None:
    scored = group([CORRECT, wrong("5"), wrong("5")])
    shown = [rejected(scored, feedback=Feedback.PEER_FULL, rank=rank).source for rank in range(3)]
    assert shown == [1, 2, -1]
    assert [rejected(scored, rank=rank).source for rank in range(2)] == [1, -1]


def test_all_correct_has_no_rejected_rollout() -> None:
    assert rejected(group([CORRECT, CORRECT])) == not_applicable(EvidenceReason.NO_REJECTED)


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
    assert hints(Ask(context=REJECTED), scored) == [not_applicable(reason)] * 2


def test_the_other_contexts_need_no_choice() -> None:
    scored = group([CORRECT, UNBOXED])
    assert hints(Ask(context=ContextName.PLAIN), scored) == [Hint(ContextName.PLAIN, "", EvidenceReason.ASKED)] * 2
    assert hints(Ask(context=ContextName.ANSWER), scored) == [Hint(ContextName.ANSWER, "7", EvidenceReason.ASKED)] * 2


def peers(*texts: str, rewards: Sequence[float], answers: Sequence[str] = (), seed: int = 1) -> ScoredGroup:
    """Returns a group of responses with one token per character; a response with a reward above 0 is correct."""
    answers = answers or ["7" if reward > 0 else str(10 + i) for i, reward in enumerate(rewards)]
    verdicts = tuple(
        make_verdict(float(r > 0), a).model_copy(update={"reward": r}) for r, a in zip(rewards, answers, strict=True)
    )
    scored = make_scored(task=make_task(samples=len(texts), seed=seed), verdicts=verdicts)
    completions = tuple(
        Completion(
            token_ids=Int32Array.of(map(ord, t)),
            logps=Float32Array.of((0.0,) * len(t)),
            text=t,
            finish_reason=FinishReason.STOP,
        )
        for t in texts
    )
    return scored.model_copy(update={"rollout": scored.rollout.model_copy(update={"completions": completions})})


def told(ask: Ask, scored: ScoredGroup) -> list[str | EvidenceReason]:
    """The text of a peer that each response is shown, or the reason why it is shown none."""
    return [
        "".join(map(chr, hint.shown)) or hint.answer if hint.applicable else hint.reason for hint in hints(ask, scored)
    ]


FOUR = peers("right", "best!", "wrong", "worst.", rewards=[0.5, 1.0, -0.25, -0.5])


@pytest.mark.parametrize(
    ("feedback", "tokens", "positive", "negative"),
    [
        (Feedback.PEER_FULL, 0, "best!", "worst."),
        (Feedback.PEER_PREFIX, 3, "bes", "wor"),
        (Feedback.PEER_PREFIX, 99, "best!", "worst."),
        (Feedback.PEER_SUFFIX, 3, "st!", "st."),
        (Feedback.PEER_SUFFIX, 6, "best!", "worst."),  # longer than the response, so all of it is shown
    ],
)
def test_a_peer_is_shown_by_its_tokens(feedback: Feedback, tokens: int, positive: str, negative: str) -> None:
    assert told(Ask(context=ContextName.ANSWER, feedback=feedback, tokens=tokens), FOUR) == [positive] * 4
    assert told(Ask(context=REJECTED, feedback=feedback, tokens=tokens), FOUR) == [negative] * 4
    (hint, *_) = hints(Ask(context=REJECTED, feedback=feedback, tokens=tokens), FOUR)
    assert hint.applicable
    assert (hint.context, hint.answer, hint.reason, hint.source) == (REJECTED, "", EvidenceReason.ASKED, 3)


@pytest.mark.parametrize("context", [ContextName.ANSWER, REJECTED])
def test_a_peer_is_never_shown_to_itself_when_that_is_excluded(context: ContextName) -> None:
    found = hints(Ask(context=context, feedback=Feedback.PEER_FULL, exclude_self=True), FOUR)
    sources = [hint.source for hint in found]
    assert sources == ([1, 0, 1, 1] if context is ContextName.ANSWER else [3, 3, 3, 2])


def test_without_a_correct_peer_the_positive_context_says_so_or_shows_the_reference() -> None:
    scored = peers("no", "nope", rewards=[0.0, 0.0])
    ask = Ask(context=ContextName.ANSWER, feedback=Feedback.PEER_FULL)
    assert hints(ask, scored) == [not_applicable(EvidenceReason.NO_CORRECT)] * 2
    otherwise = ask.model_copy(update={"otherwise": ContextName.ANSWER})
    assert hints(otherwise, scored) == [Hint(ContextName.ANSWER, "7", EvidenceReason.NO_CORRECT)] * 2
    single = peers("yes", "nope", rewards=[1.0, 0.0])
    alone = hints(otherwise.model_copy(update={"exclude_self": True}), single)
    assert alone[0] == Hint(ContextName.ANSWER, "7", EvidenceReason.ONLY_SELF)


def test_the_answer_of_a_correct_peer_is_shown_as_it_wrote_it() -> None:
    scored = peers("a", "b", rewards=[1.0, 0.0], answers=["14/2", "5"])
    assert told(Ask(context=ContextName.ANSWER, feedback=Feedback.PEER_ANSWER), scored) == ["14/2"] * 2


def test_a_solution_is_shown_whole_however_long() -> None:
    ask = Ask(context=ContextName.ANSWER, feedback=Feedback.SOLUTION)
    task = make_task(reference_solution="3 + 4 = 7. " * 40)
    assert told(ask, make_scored(task=task)) == ["3 + 4 = 7. " * 40] * 2
    assert hints(ask, make_scored()) == [not_applicable(EvidenceReason.NO_SOLUTION)] * 2


def test_only_an_answer_can_be_too_long_to_show() -> None:
    scored = peers("x" * 300, "y", rewards=[0.0, 1.0], answers=["9" * 101, "7"])
    assert hints(Ask(context=REJECTED), scored) == [not_applicable(EvidenceReason.NO_ANSWER)] * 2
    assert told(Ask(context=REJECTED, feedback=Feedback.PEER_FULL), scored) == ["x" * 300] * 2


@pytest.mark.parametrize("unusable", [UNBOXED, EMPTY_BOX, CUT], ids=["no-box", "empty-box", "truncated"])
def test_a_response_without_an_answer_is_no_rejected_peer_either(unusable: Verdict) -> None:
    ask = Ask(context=REJECTED, feedback=Feedback.PEER_FULL)
    assert hints(ask, group([unusable, CORRECT])) == [not_applicable(EvidenceReason.NO_ANSWER)] * 2


@pytest.mark.parametrize(
    ("pick", "source"), [(Pick.REWARD, 0), (Pick.SHORTEST, 2), (Pick.MOST_COMMON, 1)], ids=lambda pick: str(pick)
)
def test_which_rejected_rollout_is_shown(pick: Pick, source: int) -> None:
    scored = peers("aaaa", "bbb", "c", "ddd", "right", rewards=[-1, 0, 0, 0, 1], answers=["1", "2", "3", "2", "7"])
    assert {hint.source for hint in hints(Ask(context=REJECTED, pick=pick), scored)} == {source}


def test_a_drawn_peer_depends_on_the_seed_and_not_on_the_order_of_the_rollouts() -> None:
    texts = ["first", "second", "third", "fourth"]
    ask = Ask(context=REJECTED, feedback=Feedback.PEER_FULL, pick=Pick.RANDOM)
    drawn = []
    for seed in range(20):
        one, *_ = told(ask, peers(*texts, rewards=[0.0] * 4, seed=seed))
        assert told(ask, peers(*texts[::-1], rewards=[0.0] * 4, seed=seed)) == [one] * 4
        drawn.append(one)
    assert set(drawn) == set(texts)


def test_the_rank_counts_differing_rejected_answers() -> None:
    scored = peers("a", "b", "c", "right", rewards=[-0.5, -0.25, -0.125, 1.0], answers=["5", "5", "6", "7"])
    shown = [told(Ask(context=REJECTED, rank=rank), scored)[0] for rank in range(3)]
    assert shown == ["5", "6", EvidenceReason.TOO_FEW]
    fallback = Ask(context=REJECTED, rank=2, otherwise=ContextName.PLAIN)
    assert hints(fallback, scored)[0] == Hint(ContextName.PLAIN, "", EvidenceReason.TOO_FEW)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("no box here", "None"), ("so \\boxed{} is it", "so \\boxed{} is it"), ("\\boxed{7}", "7"), ("x" * 80, "None")],
)
def test_the_published_choice_takes_the_lowest_reward_whatever_it_says(text: str, shown: str) -> None:
    scored = peers("\\boxed{8}", text, "\\boxed{7}", rewards=[-0.25, -0.5, 1.0])
    assert told(Ask(context=REJECTED, as_published=True), scored) == [shown] * 3


def test_the_published_choice_cuts_the_text_of_an_empty_box() -> None:
    scored = peers("\\boxed{}" + "y" * 80, rewards=[0.0])
    assert told(Ask(context=REJECTED, as_published=True), scored) == ["\\boxed{}" + "y" * 42]
