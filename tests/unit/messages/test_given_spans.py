"""Sampled and given spans of a response."""

from __future__ import annotations

from hypothesis import given, strategies

from cepo.messages.spans import (
    Given,
    Trajectory,
    check_given,
    given_spans,
    given_tokens,
    sampled_mask,
    sampled_spans,
)

MASKS = strategies.lists(strategies.booleans(), max_size=12)


@given(MASKS)
def test_a_mask_and_its_spans_say_the_same(mask: list[bool]) -> None:
    spans = given_spans(mask)
    check_given(spans, len(mask))
    assert sampled_mask(spans, len(mask)) == mask
    assert given_tokens(spans) == mask.count(False)
    assert [at for start, end in sampled_spans(spans, len(mask)) for at in range(start, end)] == [
        at for at, sampled in enumerate(mask) if sampled
    ]


def test_a_response_of_one_turn_is_one_sampled_span() -> None:
    assert sampled_spans((), 4) == [(0, 4)]
    assert sampled_spans((), 0) == []


def test_a_trajectory_joins_what_follows_each_other() -> None:
    trajectory = Trajectory()
    trajectory.give([])
    trajectory.sample([1, 2], [-1.0, -2.0])
    trajectory.give([3])
    trajectory.give([4, 5])
    trajectory.sample([6], [-3.0])
    trajectory.sample([7], [-4.0])
    assert trajectory.token_ids == [1, 2, 3, 4, 5, 6, 7]
    assert trajectory.logps == [-1.0, -2.0, 0.0, 0.0, 0.0, -3.0, -4.0]
    assert trajectory.given == (Given(start=2, end=5),)
