"""DAPO's dynamic sampling: which groups are trained on, how many prompts are drawn, and when sampling ends."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from cepo.algo.methods.dapo import Dapo, is_mixed
from cepo.messages.groups import EvidencedGroup, Outcome, PromptTask, Verdict
from tests.helpers.factories import make_scored, make_task, make_verdict


@dataclass
class Shelf:
    """A supply that records each draw and has `left` prompts left."""

    prompts: int
    left: int = 100
    drawn: list[int] = field(default_factory=list)

    def draw(self, count: int) -> tuple[PromptTask, ...]:
        self.drawn.append(count)
        taken = min(count, self.left)
        self.left -= taken
        return tuple(make_task(index=self.prompts + i) for i in range(taken))


def group(*rewards: float, index: int = 0) -> EvidencedGroup:
    return EvidencedGroup(scored=make_scored(rewards, make_task(index=index, samples=len(rewards))))


MIXED, RIGHT, WRONG = group(1.0, 0.0), group(1.0, 1.0), group(0.0, 0.0)


def test_a_group_teaches_when_some_are_correct_and_some_are_not_whatever_the_rewards() -> None:
    assert [is_mixed(g) for g in (MIXED, RIGHT, WRONG)] == [True, False, False]
    formatted = [make_verdict(0.0).model_copy(update={"reward": reward}) for reward in (0.1, 0.0)]
    assert not is_mixed(EvidencedGroup(scored=make_scored(verdicts=formatted)))
    for judged in (1.0, 0.0):
        verdicts = [make_verdict(judged), make_verdict(judged), Verdict(outcome=Outcome.TIMEOUT, reward=0, accuracy=0)]
        assert not is_mixed(EvidencedGroup(scored=make_scored(verdicts=verdicts)))  # a timeout is not a wrong answer


def test_as_many_prompts_are_drawn_as_groups_are_missing() -> None:
    shelf = Shelf(prompts=4)
    assert len(Dapo().follow_up([MIXED, RIGHT, WRONG, MIXED], 0, shelf)) == 2
    assert Dapo().follow_up([MIXED] * 4, 0, shelf) == ()
    assert shelf.drawn == [2]


def test_a_chunk_without_any_group_that_teaches_is_sampled_again_until_the_tries_are_spent() -> None:
    shelf, groups, algorithm = Shelf(prompts=2), [WRONG, RIGHT], Dapo(max_tries=3)
    while more := algorithm.follow_up(groups, 0, shelf):
        groups += [WRONG] * len(more)
    assert len(groups) == 6
    assert shelf.drawn == [2, 2]
    assert algorithm.select(groups, shelf) == groups  # no group is mixed, so the update of the step is zero


def test_a_data_set_that_has_no_more_prompts_ends_the_step() -> None:
    assert Dapo().follow_up([WRONG, WRONG], 0, Shelf(prompts=2, left=0)) == ()


def test_the_step_trains_on_as_many_groups_as_it_has_prompts() -> None:
    groups = [WRONG, MIXED, RIGHT, *(group(1.0, 0.0, index=i) for i in range(5))]
    kept = Dapo().select(groups, Shelf(prompts=3))
    assert kept == [MIXED, groups[3], groups[4]]


@pytest.mark.parametrize("groups", [[MIXED], [WRONG], [MIXED, WRONG]])
def test_failed_groups_are_made_up_for(groups: list[EvidencedGroup]) -> None:
    missing = 3 - groups.count(MIXED)
    assert len(Dapo().follow_up(groups, 0, Shelf(prompts=3))) == missing
