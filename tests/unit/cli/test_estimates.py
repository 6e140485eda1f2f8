"""Estimates from repeated samples, compared with enumeration and simulation."""

from __future__ import annotations

import itertools
import random

import pytest

from cepo.cli.evaluation.estimates import Estimate, Tally, ks_up_to, mean_over_samples, pass_at, pass_at_k


@pytest.mark.parametrize(("correct", "samples"), [(0, 5), (1, 5), (3, 5), (5, 5), (1, 1), (2, 7)])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_sample(correct: int, samples: int) -> None:
    marks = [True] * correct + [False] * (samples - correct)
    for k in range(1, samples + 1):
        subsets = list(itertools.combinations(marks, k))
        assert pass_at(Tally(correct, samples), k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_1_is_the_mean() -> None:
    tallies = [Tally(c, 4) for c in (0, 1, 3, 4, 2)]
    assert pass_at_k(tallies, 1).value == pytest.approx(mean_over_samples(tallies).value) == pytest.approx(0.5)


def test_the_interval_over_samples_holds_the_true_mean_as_often_as_it_says() -> None:
    rng, chances, held = random.Random(0), [0.1, 0.3, 0.5, 0.8, 0.95] * 20, 0
    truth = sum(chances) / len(chances)
    for _ in range(400):
        found = mean_over_samples([Tally(sum(rng.random() < chance for _ in range(8)), 8) for chance in chances])
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert 0.92 < held / 400 < 0.98


def test_the_interval_over_problems_holds_the_mean_of_other_problems_as_often_as_it_says() -> None:
    rng, held = random.Random(1), 0
    for _ in range(400):
        tallies = [
            Tally(sum(rng.random() < chance for _ in range(4)), 4) for chance in (rng.random() for _ in range(80))
        ]
        found = pass_at_k(tallies, 1)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.5 <= found.high
    assert 0.92 < held / 400 < 0.98


def test_all_right_is_not_certainty() -> None:
    right, wrong = pass_at_k([Tally(2, 2)] * 10, 2), pass_at_k([Tally(0, 2)] * 10, 2)
    assert (right.value, right.high, wrong.value, wrong.low) == (1.0, 1.0, 0.0, 0.0)
    assert right.low == pytest.approx(0.7225, abs=1e-4)
    assert wrong.high == pytest.approx(0.2775, abs=1e-4)


def test_one_sample_says_nothing_of_its_spread() -> None:
    assert mean_over_samples([Tally(1, 1), Tally(0, 1)]) == Estimate(0.5)
    assert pass_at_k([Tally(1, 2)], 1) == Estimate(0.5)


@pytest.mark.parametrize(("samples", "shown"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_the_sizes_that_are_shown(samples: int, shown: tuple[int, ...]) -> None:
    assert ks_up_to(samples) == shown
