"""The best policy of a run: how it is chosen and measured, its interval, and when a run stops without a better one."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from cepo.run.best import Row, best_of, plateaued, wilson


def rows(*accuracies: tuple[float, float]) -> list[Row]:
    """A step without an evaluation before each of these evaluations."""
    found: list[Row] = []
    for choice, report in accuracies:
        found.append({"step": len(found)})
        step = len(found)
        found.append(
            {
                "step": step,
                "accuracy/eval_choice": choice,
                "accuracy/eval_report": report,
                "accuracy/eval_report_problems": 100.0,
            }
        )
    return found


def test_one_half_chooses_and_the_other_measures() -> None:
    best = best_of(rows((0.5, 0.6), (0.7, 0.55), (0.7, 0.9), (0.6, 0.95)))
    assert best is not None
    assert (best.version, best.chosen, best.measured) == (4, 0.7, 0.55)
    assert (best.low, best.high) == pytest.approx((0.4524, 0.6439), abs=1e-4)
    assert str(best) == "v000004, held out 55.0% (95 % interval 45.2% to 64.4%)"


def test_the_measure_of_the_best_of_equal_policies_is_not_optimistic() -> None:
    """Twenty policies of accuracy 0.5: the choosing half shows 0.59 on average, the other half 0.5."""
    draws = random.Random(0)

    def noisy() -> float:
        return sum(draws.random() < 0.5 for _ in range(100)) / 100

    found = [best_of(rows(*((noisy(), noisy()) for _ in range(20)))) for _ in range(300)]
    assert fmean([best.chosen for best in found if best]) > 0.58
    assert fmean([best.measured for best in found if best]) == pytest.approx(0.5, abs=0.01)


def test_a_run_without_evaluations_has_no_best_policy() -> None:
    assert best_of([{"step": 0, "accuracy/eval": None}]) is None
    assert not plateaued([], 3)


def test_a_run_plateaus_after_evaluations_without_a_better_policy() -> None:
    measured = rows((0.5, 0.5), (0.7, 0.5), (0.6, 0.5), (0.7, 0.5))
    assert [plateaued(measured, patience) for patience in (0, 1, 2, 3)] == [False, True, True, False]
    assert not plateaued(rows((0.5, 0.5), (0.7, 0.5)), 1)


@pytest.mark.parametrize(
    ("share", "trials", "low", "high"), [(0.5, 0, 0, 1), (1.0, 10, 0.7225, 1), (0.0, 10, 0, 0.2775)]
)
def test_the_interval_is_wilsons(share: float, trials: int, low: float, high: float) -> None:
    assert wilson(share, trials) == pytest.approx((low, high), abs=1e-4)
